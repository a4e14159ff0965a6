"""JSON in one piece."""

from __future__ import annotations

import pytest

from ftscale.config.schema import SourceConfig
from ftscale.data.sources import open_stream

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
        (
            '{"rows": []}',
            "must be a list of objects, or {\"data\": [...]}; of its lists 'rows', set data.train[0].rows: rows.",
        ),
        ("{}", "must be a list of objects"),
        ('[\n{"text": 1},\n{"text" 2}]', ":3 is not one JSON value"),
        ('{"first": {"text": "a"}}\n', "set data.train[0].format: jsonl"),
        ('{"text": "a", "label": 1}\n{"text" "b"}\n', ":2 is not JSON"),
        (
            '{"text": "a",\n"label": 1}\n{"text": "b"}',
            ":3 is not one JSON value (Extra data at character 1); mend it; several objects",
        ),
        ('[{"text": "a", "label": 1}, "b"]', "row 2 is of type str, must be an object"),
        ("[]", "has no rows"),
        ("", "has no rows"),
    ],
)
def test_what_is_no_list_of_objects_is_refused(tmp_path, refused, content, words):
    path = tmp_path / "a.json"
    path.write_text(content)
    assert words in refused(path)


def test_an_object_by_itself_is_a_row(tmp_path, read):
    path = tmp_path / "a.json"
    path.write_text('{"text": "dear all", "label": "ham",\n "headers": {"from": "ann"}}')
    [row] = read(path)
    assert (row["text"], row["label"]) == ("dear all", "ham")


SPLITS = '{"train": [["hi", "greet"], ["see you", "leave"]], "more": {"val": [["hello", "greet"]]}}'
BY_NUMBER = {"columns": {"text": 0, "label": -1}}


def test_rows_say_where_the_list_is_and_lists_have_numbered_columns(tmp_path, read):
    path = tmp_path / "a.json"
    path.write_text(SPLITS)
    assert read(path, rows="train", **BY_NUMBER) == [
        {"text": "hi", "label": "greet", "_where": f"{path} row 1"},
        {"text": "see you", "label": "leave", "_where": f"{path} row 2"},
    ]
    assert [row["text"] for row in read(path, rows="more.val", **BY_NUMBER)] == ["hello"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"rows": "trains"},
            "data.train[0].rows = 'trains': PATH has no 'trains' but 'train', 'more'; did you mean 'train'?",
        ),
        ({"rows": "more.vla"}, "PATH has at more no 'vla' but 'val'; did you mean 'more.val'?"),
        ({"rows": "more"}, "in PATH, where it is of type dict; set it to one of 'train', 'more.val'."),
        (
            {"rows": "train"},
            "PATH row 1 has no column for 'text', 'label' (the task needs text + label); it has 2 columns",
        ),
        ({"rows": "train"}, "without names; set data.train[0].columns={text: 0, label: 1}."),
        ({"rows": "train", "columns": {"text": 0, "label": 2}}, "columns.label = 2 must be below 2"),
        ({"split": "train"}, "and set data.train[0].rows: train where the split is a list of the document."),
        ({}, "of its lists 'train', 'more.val', set data.train[0].rows: train."),
    ],
)
def test_a_place_that_holds_no_rows_is_refused_with_those_that_do(tmp_path, refused, settings, words):
    path = tmp_path / "a.json"
    path.write_text(SPLITS)
    assert words.replace("PATH", str(path)) in refused(path, **settings)


@pytest.mark.parametrize("start", ["", "\n", "\ufeff"])
def test_an_object_a_line_is_read_as_json_lines_and_resumed_there(tmp_path, read, refused, start):
    path = tmp_path / "a.json"
    path.write_text(start + "".join(f'{{"text": "{text}", "label": 1}}\n' for text in "abc"))
    first = 1 + (start == "\n")
    rows = read(path)
    assert [(row["text"], row["_where"]) for row in rows] == [
        (text, f"{path}:{line}") for line, text in enumerate("abc", first)
    ]
    items = list(open_stream(SourceConfig(path=str(path)), roles=(("text", "label"),), position=None))
    assert (
        list(open_stream(SourceConfig(path=str(path)), roles=(("text", "label"),), position=items[0][1])) == items[1:]
    )
    assert "has an object a line, so that data.train[0].rows = 'x' is not used" in refused(path, rows="x")


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
