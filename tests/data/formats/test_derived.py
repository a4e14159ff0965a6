"""Values made of a row's columns or of its file's name: in every format, and with the place where they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ftscale.config.schema import SourceConfig
from ftscale.data.sources import open_stream, read_rows, source_fingerprint

PAIR = ("source", "target")
TRANSLATIONS = [{"translation": {"en": f"one {number}", "fr": f"un {number}"}} for number in range(5)]
BY_PATH = {"source": "translation.en", "target": "translation.fr"}


def _write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def _lines(path: Path, rows: list[Any]) -> Path:
    return _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


def _json(path: Path, rows: list[Any]) -> Path:
    return _write(path, json.dumps(rows))


# ---------------------------------------------------------------- constants


def test_a_set_value_is_the_same_in_every_row_and_goes_before_a_column_of_its_name(tmp_path, read):
    path = _write(tmp_path / "rt.pos", "good\n\nfine\n")
    assert read(path, format="text", set={"label": "pos"}) == [
        {"text": "good", "label": "pos", "_where": f"{path}:1"},
        {"text": "fine", "label": "pos", "_where": f"{path}:3"},
    ]
    table = _write(tmp_path / "a.csv", "text,label\na,x\n")
    assert read(table, set={"label": 1})[0]["label"] == 1
    assert [row["label"] for row in read(_lines(tmp_path / "a.jsonl", [{"text": "a"}]), set={"label": "{{x}}"})] == [
        "{x}"
    ]


def test_folders_and_files_give_their_names(tmp_path, read):
    for name in ("pos/1.txt", "pos/2.txt", "neg/1.txt"):
        _write(tmp_path / name, f"of {name}\n")
    rows = read(tmp_path / "*/*.txt", set={"label": "{folder}"})
    assert [(row["text"], row["label"]) for row in rows] == [
        ("of neg/1.txt", "neg"),
        ("of pos/1.txt", "pos"),
        ("of pos/2.txt", "pos"),
    ]
    rows = read(tmp_path / "pos/*.txt", set={"label": "{folder}-{file}"})
    assert [row["label"] for row in rows] == ["pos-1", "pos-2"]


def test_a_renamed_folder_changes_the_fingerprint_where_its_name_is_in_the_rows(tmp_path):
    before = _write(tmp_path / "pos/a.txt", "good\n")
    sources = [{"set": {"label": "{folder}"}}, {"set": {"label": "pos"}}, {}]
    first = [source_fingerprint(SourceConfig(path=str(before), **settings)) for settings in sources]
    after = _write(tmp_path / "neg/a.txt", "good\n")
    second = [source_fingerprint(SourceConfig(path=str(after), **settings)) for settings in sources]
    assert first[0] != second[0]
    assert first[1:] == second[1:]
    assert len(set(first)) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"set": {"label": "{foldr}"}},
            "set.label = '{foldr}': {foldr} must be {folder} or {file}; did you mean {folder}?",
        ),
        ({"set": {"label": "{x}"}}, "write one of them, or {{ and }} for braces."),
        ({"set": {"label": "a}"}}, "the brace at character 2 must have a name and another brace; write {NAME}, or }}"),
    ],
)
def test_names_that_are_not_of_a_file_are_refused(tmp_path, refused, settings, words):
    assert words in refused(_write(tmp_path / "a.txt", "good\n"), **settings)


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("write", [_lines, _json, _parquet])
def test_a_path_reads_inside_objects_and_goes_on_after_a_position(tmp_path, write):
    source = SourceConfig(path=str(write(tmp_path / f"a.{SUFFIX[write]}", TRANSLATIONS)), columns=BY_PATH)
    items = list(open_stream(source, roles=(PAIR,), position=None))
    assert [(row["source"], row["target"]) for row, _ in items] == [(f"one {n}", f"un {n}") for n in range(5)]
    for cut in (1, 3, 5):
        assert list(open_stream(source, roles=(PAIR,), position=items[cut - 1][1])) == items[cut:]


SUFFIX = {_lines: "jsonl", _json: "json", _parquet: "parquet"}


def test_a_column_of_the_exact_name_goes_before_a_path(tmp_path, read):
    path = _lines(
        tmp_path / "a.jsonl", [{"text": "x", "a.b": "column", "a": {"b": "inside"}}, {"text": "y", "a": {"b": "z"}}]
    )
    assert [row["label"] for row in read(path, columns={"label": "a.b"})] == ["column", "z"]


def test_a_key_that_is_not_in_an_object_is_refused_with_its_line_or_left_out(tmp_path, read, refused):
    path = _lines(tmp_path / "a.jsonl", [TRANSLATIONS[0], {"translation": {"en": "two", "de": "zwei"}}])
    message = refused(path, PAIR, columns=BY_PATH)
    assert (
        f"{path}:2: data.train[0].columns.target = 'translation.fr': the row has at translation no 'fr' but 'en'"
        in message
    )
    assert "set drop: [missing]" in message
    assert read(path, PAIR, columns=BY_PATH, drop=["missing"])[1]["target"] is None
    assert read(path, PAIR, columns=BY_PATH, absent={"target"})[1]["target"] is None  # as of rows to predict on


def test_a_path_from_a_column_that_is_not_there_is_refused_with_the_nearest(tmp_path, refused):
    message = refused(_lines(tmp_path / "a.jsonl", TRANSLATIONS), PAIR, columns={**BY_PATH, "source": "translaton.en"})
    assert "columns.source = 'translaton.en' is not a column of" in message
    assert "did you mean 'translation.en'?" in message
    message = refused(
        _lines(tmp_path / "a.jsonl", TRANSLATIONS), PAIR, columns={**BY_PATH, "target": "translation.frr"}
    )
    assert "or did you mean 'translation.fr'?" in message


# ---------------------------------------------------------------- templates

PROBLEM = {"Body": "Ann has {3}.", "Question": "How many?", "Answer": 3.0, "more": {"unit": "apples"}}
ASKED = {"prompt": "{{Q}} {Body} {Question} ({more.unit})", "completion": "{Answer}"}


@pytest.mark.parametrize("write", [_lines, _json, _parquet])
def test_a_template_joins_columns_and_writes_numbers_as_texts(tmp_path, read, write):
    [row] = read(write(tmp_path / f"a.{SUFFIX[write]}", [PROBLEM]), ("prompt", "completion"), columns=ASKED)
    assert (row["prompt"], row["completion"]) == ("{Q} Ann has {3}. How many? (apples)", "3.0")


def test_a_template_names_columns_without_names_by_their_numbers(tmp_path, read):
    path = _write(tmp_path / "a.tsv", "a\tb\tx\n")
    assert read(path, header=False, columns={"text": "{1} {0}", "label": -1})[0]["text"] == "b a"


def test_a_template_with_a_missing_part_is_missing(tmp_path, read):
    path = _lines(tmp_path / "a.jsonl", [{"a": "x", "b": None}, {"a": "x", "b": "N/A"}, {"a": "x", "b": ""}])
    rows = read(path, ("text",), columns={"text": "{a}-{b}"}, missing_values=["N/A"])
    assert [row["text"] for row in rows] == [None, None, "x-"]


def test_a_row_that_lacks_a_column_of_a_template_is_refused_or_left_out(tmp_path, read, refused):
    path = _lines(tmp_path / "a.jsonl", [{"a": "x", "b": "y"}, {"a": "x"}])
    message = refused(path, ("text",), columns={"text": "{a} {b}"})
    assert f"columns.text = '{{a}} {{b}}': 'b' is not a column of {path}:2, which has the columns 'a'" in message
    assert [row["text"] for row in read(path, ("text",), columns={"text": "{a} {b}"}, drop=["missing"])] == [
        "x y",
        None,
    ]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": "{Bdy}"}, "columns.text = '{Bdy}': 'Bdy' is not a column of "),
        ({"text": "{Bdy}"}, "did you mean 'Body'?"),
        (
            {"text": "{more}"},
            ":1: more = {'unit': 'apples'} must be a text or a number to stand in data.train[0].columns.text",
        ),
        ({"text": "{Body"}, "the brace at character 1 must have a name and another brace"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(tmp_path, refused, columns, words):
    assert words in refused(_lines(tmp_path / "a.jsonl", [PROBLEM]), ("text",), columns=columns)


# ---------------------------------------------------------------- columns of 0 and 1


def test_the_names_of_columns_that_hold_1_are_the_classes(tmp_path, read):
    path = _write(tmp_path / "a.csv", "text,rude,loud\na,1,0\nb,,0.0\nc,TRUE,1\n")
    rows = read(path, columns={"label": ["rude", "loud"]})
    assert [row["label"] for row in rows] == [["rude"], [], ["rude", "loud"]]
    path = _lines(tmp_path / "a.jsonl", [{"text": "a", "of": {"rude": True, "loud": 0}}])
    assert read(path, columns={"label": ["of.rude", "of.loud"]})[0]["label"] == ["of.rude"]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["rude", "louds"], "columns.label = ['rude', 'louds']: 'louds' is not a column of "),
        (["rude", "louds"], "did you mean 'loud'?"),
        (
            ["rude", "text"],
            "a.csv:2: text = 'a' must be 0 or 1, since data.train[0].columns.label is a list of columns of",
        ),
    ],
    ids=["name", "nearest", "value"],
)
def test_columns_that_hold_something_else_are_refused_with_the_line(tmp_path, refused, labels, words):
    path = _write(tmp_path / "a.csv", "text,rude,loud\na,1,0\n")
    assert words in refused(path, columns={"label": labels})


# ---------------------------------------------------------------- predict


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_kept_columns_are_those_of_the_file(tmp_path, suffix):
    row = {"a": "x", "b": "y"}
    path = _lines(tmp_path / "a.jsonl", [row]) if suffix == "jsonl" else _write(tmp_path / "a.csv", "a,b\nx,y\n")
    source = SourceConfig(path=str(path), columns={"text": "{a} {b}"}, set={"text_pair": "z"})
    [found] = read_rows(source, roles=(("text", "text_pair", "label"),), absent={"label"}, keep_columns=True)
    assert (found["text"], found["text_pair"], found["_columns"]) == ("x y", "z", list(row.items()))


def test_kept_columns_of_lists_have_names_by_what_they_are_to_the_task(tmp_path):
    path = _lines(tmp_path / "a.jsonl", [["x", 1, "y"]])
    source = SourceConfig(path=str(path), columns={"text": 0, "label": 2})
    [found] = read_rows(source, roles=(("text", "label"),), keep_columns=True)
    assert found["_columns"] == [("text", "x"), ("1", 1), ("label", "y")]


def test_a_list_of_columns_for_the_target_is_a_list_of_references(tmp_path, read):
    (tmp_path / "a.csv").write_text("s,one,two\na,b,c\nd,,e\nf,,\n")
    rows = read(tmp_path / "a.csv", ("source", "target"), columns={"source": "s", "target": ["one", "two"]})
    assert [row["target"] for row in rows] == [["b", "c"], ["e"], None]
