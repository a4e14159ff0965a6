"""Each test file has a budget of processor seconds, the last whole run kept within it, and all together are minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
BUDGETS: dict[str, float] = json.loads((TESTS / "budget.json").read_text())
"""Processor seconds on two ordinary cores, by file. A new task may cost 20, a new method 30."""
LAST = json.loads((TESTS.parent / "benchmarks/results/tests.json").read_text())["files"]
ALL_S = 2 * 60 * 18  # of two cores in 18 minutes: .ci/run has 20, with what it installs


def test_every_test_file_has_a_budget_and_every_budget_a_file():
    files = {path.relative_to(TESTS.parent).as_posix() for path in TESTS.rglob("test_*.py")}
    assert BUDGETS.keys() == files, "tests/budget.json: name what the file may cost, or take its line out"


@pytest.mark.parametrize("file", LAST)
def test_the_last_run_kept_within_the_budget(file: str):
    assert LAST[file]["processor_s"] <= BUDGETS[file], "make the file cheaper, or part of it a test of the campaign"


def test_all_budgets_together_are_minutes():
    assert sum(BUDGETS.values()) <= ALL_S
