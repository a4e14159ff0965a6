"""docs/settings.md is the page that the schema gives, with type, default and meaning of every setting."""

from __future__ import annotations

import re

import tiny

from ftscale.config.load import config_schema
from ftscale.config.settings_page import settings_page


def test_the_page_is_the_one_that_is_printed():
    printed = tiny.command("schema", "--page").stdout
    assert printed == settings_page()
    page = (tiny.ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == printed, "run ftscale schema --page > docs/settings.md"


def test_a_setting_has_its_type_its_default_and_its_meaning():
    rows = settings_page().splitlines()
    assert "| `optimizer.lr` | number, above 0 | `5e-05` | Peak learning rate. |" in rows
    assert any(row.startswith("| `model.name` | string | required | Hub id, or a local folder") for row in rows)
    assert any(row.startswith("| `checkpoint.async` | true or false | `false` |") for row in rows)
    assert any(row.startswith("| `task.problem` | `single_label`, `multi_label`, `regression` |") for row in rows)
    assert any(row.startswith("| `data.train[0].limit` | whole number, 0 or more | `0` |") for row in rows)


def test_every_setting_of_the_schema_has_a_row():
    """The fields of all its sections, without the constant names."""
    names = re.findall(r"^\| `([\w.\[\]]+)` \|", settings_page(), re.MULTILINE)
    keys = [name.rpartition(".")[2] for name in names]
    for section in config_schema()["$defs"].values():
        for name, part in section["properties"].items():
            assert "const" in part or name in keys, name
    assert {"run_folder", "seed", "stages"} <= set(names)


def test_a_row_is_one_line_of_four_cells_without_tags():
    for row in re.findall(r"^\| `.*$", settings_page(), re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) == 5, row
        assert "<" not in re.sub(r"`[^`]*`", "", row), row
