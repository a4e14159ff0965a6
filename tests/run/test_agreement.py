"""Ranks that read other rows, or number classes otherwise, are told before they train."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.run.agreement import check_agreement, derived
from ftscale.run.prepared_data import Inputs, prepare_inputs


def inputs_of(shared: Path, folder: Path, rows: list[tuple[str, str]], **task: Any) -> Inputs:
    """As a machine has them on which the training file holds these rows."""
    folder.mkdir()
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    data = {"train": {"path": str(folder / "train.csv")}, "cache_dir": str(folder / "cache")}
    task = {"name": "text_classification", "max_length": 64, **task}
    return prepare_inputs(parse_config(tiny.settings(shared, folder, data=data, task=task), source="test"))


ROWS = [("a good film", "nan"), ("a bad film", "3"), ("so so", "1")]


def compare(*ranks: Inputs) -> None:
    values = [derived(inputs) for inputs in ranks]
    check_agreement(values[0], lambda own: values)


def test_machines_with_equal_rows_agree_wherever_the_files_lie(shared, tmp_path):
    compare(*(inputs_of(shared, tmp_path / name, ROWS) for name in ("one", "two", "three")))


@pytest.mark.parametrize(
    ("rows", "task", "problem"),
    [
        (
            [*ROWS[:2], ("so so", "2")],
            {},
            r'task\.labels: rank 1 has \["2", "3", "nan"\], rank 0 has \["1", "3", "nan"\]',
        ),
        ([*ROWS, ROWS[0]], {}, r"data\.train: rank 1 has 4 rows with 4 targets"),
        ([ROWS[1], ROWS[0], ROWS[2]], {}, r"data\.train: rank 1 has 3 rows with 3 targets \(content"),
        ([("a good movie", "nan"), *ROWS[1:]], {}, r"data\.train: rank 1 has 3 rows"),
        (ROWS, {"labels": ["3", "1", "nan"]}, r'task\.labels: rank 1 has \["3", "1", "nan"\]'),
    ],
)
def test_a_rank_that_derived_something_else_is_named_on_every_rank(shared, tmp_path, rows, task, problem):
    first, other = inputs_of(shared, tmp_path / "one", ROWS), inputs_of(shared, tmp_path / "two", rows, **task)
    with pytest.raises(UserError, match=problem):
        compare(first, other)
    with pytest.raises(UserError, match=problem.replace("rank 1", "rank 2")):
        compare(first, first, other)


def test_ranks_that_would_take_another_number_of_steps_are_told(shared, tmp_path):
    first = inputs_of(shared, tmp_path / "one", ROWS)
    longer = first.config.model_copy(update={"train": first.config.train.model_copy(update={"max_steps": 4})})
    with pytest.raises(UserError, match="the number of steps: rank 1 has 4, rank 0 has 3"):
        compare(first, dataclasses.replace(first, config=longer))
