"""What another file takes over of the settings by which the training data was read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftscale.config import parse_config
from ftscale.run.new_source import source_like

CONTENTS = {"txt": "a\n", "eml": "a\nb\n", "csv": "text,label\na,x\n", "json": '[{"text": "a", "label": "x"}]'}


def _like(folder: Path, trained: str, new: str, **settings: Any) -> dict[str, Any]:
    """What the source of a new file sets besides its path, where a file was trained on with these settings."""
    for name in (trained, new):
        (folder / name).write_text(CONTENTS[name.rpartition(".")[2]])
    config = parse_config(
        {
            "task": "text_classification",
            "model": "m",
            "run_folder": "r",
            "data": {"train": {"path": str(folder / trained), **settings}},
        },
        source="test",
    )
    found = source_like(config.data.train[0], str(folder / new), config).model_dump(exclude_defaults=True)
    assert found.pop("path") == str(folder / new)
    return found


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
    pattern = r"(?P<label>\S+) (?P<text>.+)"
    assert _like(tmp_path, "a.txt", "b.txt", pattern=pattern) == {"pattern": pattern}


@pytest.mark.parametrize("new", ["b.txt", "b.eml"])
def test_a_file_of_any_name_is_a_document_where_the_run_has_documents(tmp_path, new):
    read = {"format": "document", "encoding": "latin-1"}
    assert _like(tmp_path, "a.eml", new, **read) == read
    assert _like(tmp_path, "a.eml", "b.csv", **read) == {}
