"""JSON lines."""

from __future__ import annotations

import pytest


def test_values_keep_their_types_and_blank_lines_are_passed_over(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1, "more": null}\n\n{"label": ["x", "y"], "text": "b\\nc"}\r\n\n')
    assert read(path) == [
        {"text": "a", "label": 1, "_where": f"{path}:1"},
        {"text": "b\nc", "label": ["x", "y"], "_where": f"{path}:3"},
    ]


def test_each_row_takes_the_first_alternative_that_it_has_whole(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "text_pair": "c", "label": 0}\n')
    rows = read(path, ("text", "text_pair", "label"), ("text", "label"))
    assert [sorted(row) for row in rows] == [["_where", "label", "text"], ["_where", "label", "text", "text_pair"]]


def test_a_list_a_line_has_numbered_columns(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_text('["a", 1]\n["b", 2]\n')
    assert [(row["text"], row["label"]) for row in read(path, columns={"text": 0, "label": 1})] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "b", "label": }', "is not JSON (Expecting value at character 24)"),
        ("3", "is of type int, must be an object or a list"),
    ],
)
def test_a_line_that_is_no_object_is_refused_with_its_number(tmp_path, refused, line, words):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "label": 1}}\n{line}\n')
    assert f"{path}:2 {words}" in refused(path)


def test_a_row_without_a_needed_key_is_refused_with_its_line(tmp_path, refused):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "labels": 1}\n')
    message = refused(path)
    assert "a.jsonl:2 has no column for 'label'" in message
    assert "columns={label: labels}" in message


def test_real_files_have_the_published_numbers_of_rows(shared, read):
    rows = read(shared / "data/math/gsm8k/test.jsonl", columns={"text": "question", "label": "answer"})
    assert len(rows) == 1319
    assert rows[0]["text"].startswith("Janet\u2019s ducks lay 16 eggs per day.")
