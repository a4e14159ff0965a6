"""The tables of combinations in docs are those in the code, and the tests they name are there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ftscale.config.compatibility import TABLE
from ftscale.config.matrix import combinations_page, matrix, with_matrix

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current_and_a_readme_that_has_the_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_matrix(readme) == readme, "run python -m ftscale.config.matrix"
    assert (ROOT / "docs/combinations.md").read_text(encoding="utf-8") == combinations_page()


def test_the_matrix_says_what_the_table_refuses():
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in matrix().splitlines()[2:]}
    assert rows["all weights"] == ["yes"] * 7 + ["yes |"]
    assert rows["LoRA on nf4"][:5] == ["yes", "yes", "yes", "yes", "no"]
    assert rows["AdaLoRA"][2:] == ["no"] * 5 + ["no |"]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_every_row_is_shown_by_a_test_or_an_issue(row):
    assert row.tests
    for test in row.tests:
        if test.startswith("https://github.com/"):
            assert row.verdict == "refused"
            assert test.rpartition("/")[2].isdigit()
            continue
        file, name = test.split("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
