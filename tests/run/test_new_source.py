"""What another file takes over of the settings by which the training data was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftscale.config import Config, parse_config
from ftscale.config.schema import SourceConfig
from ftscale.run import new_source
from ftscale.run.new_source import source_like

CONTENTS = {
    "txt": "a\n",
    "eml": "a\nb\n",
    "csv": "text,label\na,x\n",
    "tsv": "text\tlabel\na\tx\n",
    "json": '{"result": {"items": [{"text": "a", "label": "x"}]}, "train": []}',
    "conll": "# a\nfine O\n",
    "list.json": '[{"text": "a", "label": "x"}]',
}
KEPT = {
    "columns": ("csv", {"text": "{title} {body}", "label": ["x", "y"]}),
    "set": ("csv", {"text_pair": "Is it good?"}),
    "rows": ("json", "result.items"),
    "pattern": ("txt", r"(?P<label>\S+) (?P<text>.+)"),
    "header": ("csv", False),
    "sheet": ("xlsx", "Mails"),
    "separator": ("csv", ";"),
    "comment": ("conll", "#"),
    "encoding": ("csv", "latin-1"),
    "missing_values": ("csv", ["N/A"]),
    "drop": ("csv", ["missing"]),
    "format": ("txt", "tsv"),
}
"""Settings of a source that mean for another file of its kind what they mean for it: with a value, and for which."""
OF_ONE = {
    "path": "it is that of the new one",
    "name": "the configuration of one data set, see below",
    "split": "would score the rows that were trained on",
    "limit": "all of the new rows are asked for",
    "weight": "each row is scored once",
}
"""All others, and why they are not taken over."""


def _like(folder: Path, trained: str, new: str, **settings: Any) -> dict[str, Any]:
    """What the source of a new file sets besides its path, where a file was trained on with these settings."""
    for name in (trained, new):
        _write(folder / name)
    config = _config({"path": str(folder / trained), **settings})
    found = source_like(config.data.train, str(folder / new), config).model_dump(exclude_defaults=True)
    assert found.pop("path") == str(folder / new)
    return found


def _config(*sources: dict[str, Any]) -> Config:
    data = {"train": list(sources)}
    return parse_config({"task": "text_classification", "model": "m", "run_folder": "r", "data": data}, source="test")


def _write(path: Path) -> None:
    if path.suffix == ".xlsx":
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        book.active.title = "Mails"
        for row in (("text", "label"), ("a", "x")):
            book.active.append(row)
        book.save(path)
        return
    path.write_text(CONTENTS[path.name.partition(".")[2]])


def test_every_setting_of_a_source_is_taken_over_or_there_is_a_reason():
    assert {*KEPT, *OF_ONE} == set(SourceConfig.model_fields)
    groups = (new_source.OF_ONE_SOURCE, new_source.PLACES, new_source.OF_A_FORMAT, new_source.OF_ROWS)
    assert sorted(name for group in groups for name in group) == sorted(SourceConfig.model_fields)


@pytest.mark.parametrize("name", KEPT)
def test_a_file_of_the_same_kind_is_read_as_the_one_before(tmp_path, name):
    end, value = KEPT[name]
    found = _like(tmp_path, f"a.{end}", f"b.{end}", **{name: value}, limit=1, weight=2)
    wanted = SourceConfig(path="", **{name: value}).model_dump(exclude_defaults=True)
    assert found == {key: given for key, given in wanted.items() if key != "path"}


def test_a_configuration_is_that_of_one_data_set(tmp_path):
    config = _config({"path": "glue", "format": "hub", "name": "mrpc", "split": "train"})
    taken = [source_like(config.data.train, path, config, form="hub").name for path in ("glue", "super_glue")]
    assert taken == ["mrpc", None]


def test_what_rows_mean_goes_over_to_any_format_and_how_files_are_read_to_the_same(tmp_path):
    meant = {"missing_values": ["N/A"], "drop": ["missing"]}
    read = {"columns": {"text": 0, "label": 1}, "header": False, "encoding": "latin-1", "separator": ";"}
    of_rows = {"missing_values": ("N/A",), "drop": ("missing",)}
    assert _like(tmp_path, "a.csv", "b.txt", **read, **meant) == of_rows
    assert _like(tmp_path, "a.csv", "b.json", **read, **meant) == of_rows
    assert _like(tmp_path, "a.csv", "b.tsv", **read, **meant) == of_rows
    assert _like(tmp_path, "a.csv", "b.tsv", columns={"text": 0, "label": "x"}) == {"columns": {"label": "x"}}


def test_of_several_sources_the_one_of_the_same_kind_counts(tmp_path):
    for name in ("a.csv", "b.json", "c.json"):
        _write(tmp_path / name)
    sources = [{"path": f"{tmp_path}/a.csv", "separator": ";"}, {"path": f"{tmp_path}/b.json", "rows": "result.items"}]
    config = _config(*sources)
    assert source_like(config.data.train, f"{tmp_path}/c.json", config).rows == "result.items"


@pytest.mark.parametrize("trained", ["a.txt", "a.*"])
def test_lines_of_standard_input_are_those_of_the_trained_pattern_also_when_its_file_is_gone(tmp_path, trained):
    pattern = KEPT["pattern"][1]
    (tmp_path / "x.stdin.txt").write_text("pos fine\n")
    form = "text" if "*" in trained else "auto"
    config = _config({"path": f"{tmp_path}/{trained}", "pattern": pattern, "format": form})
    assert source_like(config.data.train, f"{tmp_path}/x.stdin.txt", config).pattern == pattern


@pytest.mark.parametrize(("trained", "new"), [("a.txt", "b.txt"), ("a.csv", "b.json"), ("a.txt", "b.csv")])
def test_the_label_of_one_file_is_not_that_of_another_but_inputs_and_names_of_files_are(tmp_path, trained, new):
    fixed = {"text_pair": "Is it good?", "label": "pos"}
    assert _like(tmp_path, trained, new, set=fixed) == {"set": {"text_pair": "Is it good?"}}
    assert _like(tmp_path, trained, new, set={"label": "{folder}"}) == {"set": {"label": "{folder}"}}


def test_forms_of_columns_go_over_where_columns_have_names(tmp_path):
    columns = {"text": "{title} {body}", "label": ["x", "y"]}
    read = {"columns": {"text": "{title} {body}", "label": ("x", "y")}}
    assert _like(tmp_path, "a.csv", "b.csv", columns=columns) == read
    assert _like(tmp_path, "a.csv", "b.json", columns=columns) == read
    assert _like(tmp_path, "a.csv", "b.txt", columns=columns) == {}


def test_the_place_of_the_rows_is_that_of_one_document_and_a_pattern_that_of_all_lines(tmp_path):
    assert _like(tmp_path, "a.json", "b.json", rows="train") == {}
    assert _like(tmp_path, "a.json", "b.list.json", rows="result.items") == {}
    pattern = r"(?P<label>\S+) (?P<text>.+)"
    assert _like(tmp_path, "a.txt", "b.txt", pattern=pattern) == {"pattern": pattern}


@pytest.mark.parametrize("new", ["b.txt", "b.eml"])
def test_a_file_of_any_name_is_a_document_where_the_run_has_documents(tmp_path, new):
    read = {"format": "document", "encoding": "latin-1"}
    assert _like(tmp_path, "a.eml", new, **read) == read
    assert _like(tmp_path, "a.eml", "b.csv", **read) == {}
