"""JSON in one piece."""

from __future__ import annotations

import pytest

ROWS = '[{"text": "a", "label": 1}, {"text": "b", "label": 0}]'


@pytest.mark.parametrize("content", [ROWS, f'{{"version": 1, "data": {ROWS}}}', "\ufeff" + ROWS])
def test_a_list_of_objects_is_read_alone_or_under_data(tmp_path, read, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert read(path) == [
        {"text": "a", "label": 1, "_where": f"{path} row 1"},
        {"text": "b", "label": 0, "_where": f"{path} row 2"},
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"rows": []}', "must be a list of objects"),
        ('[\n{"text": 1},\n{"text" 2}]', ":3 is not one JSON value"),
        ('{"text": "a"}\n{"text": "b"}\n', "set data.train[0].format: jsonl"),
        ('[{"text": "a", "label": 1}, "b"]', "row 2 is of type str, must be an object"),
        ("[]", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_what_is_no_list_of_objects_is_refused(tmp_path, refused, content, words):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert words in refused(path)


def test_a_byte_that_is_not_utf_8_is_named_with_its_line(tmp_path, refused):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text":\n"\xe9t\xe9"}]')
    assert f"cannot decode byte 0xe9 in {path}:2" in refused(path)


def test_real_files_have_the_published_numbers_of_rows(shared, read):
    folder = shared / "data/sft"
    alpaca = read(folder / "alpaca_1k/alpaca_1k.json", ("instruction", "input", "output"))
    assert len(alpaca) == 1013
    assert alpaca[0]["instruction"] == "Output a multiplication table for the numbers 2 to 10."
    chats = read(folder / "llamafactory_demo/glaive_toolcall_en_demo.json", ("conversations",))
    assert (len(chats), chats[0]["conversations"][0]["from"]) == (300, "human")
