"""What an evaluation notes of each row that it scored: rows/eval-00000200.parquet, rows/test.parquet.

Columns: `where` (file and line), `sample` (its number among the prepared ones), `length` (what micro-batches are cut
by, e.g. tokens), `group.NAME` for each of `evaluation.groups`, those of the task (`Columns`), and `input`, what the
model read, of the rows with the largest losses and of the wrong ones that the model was surest of; where tags are of
words, also `words` of these.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ftscale.base.files import open_new_bytes, partial_path, remove
from ftscale.data.sample import WHERE

if TYPE_CHECKING:
    from ftscale.data.prepare import Prepared
    from ftscale.tasks.base import Evaluator, Task

ROWS = "rows"
"""The folder of a run that they lie in."""
OF_GROUP = "group."
"""Begins the name of a column of the user's."""
CHUNK = 2**16
"""Rows that are made into columns at a time."""
MOST_SHOWN = 60
"""Rows of each kind whose input is kept."""
MOST_CHARACTERS = 2000
"""Of an input, or of a text that stands in a column."""


def record_path(run_folder: Path, part: str, step: int) -> Path:
    """Where the rows of a part are noted: of each evaluation by its step, of the test rows once."""
    return run_folder / ROWS / ("test.parquet" if part == "test" else f"{part}-{step:08d}.parquet")


def write_row_records(path: Path, task: Task, evaluator: Evaluator, rows: Prepared) -> None:
    """Write a record of each row that was scored, where the task notes any."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(evaluator)
    if not columns:
        return
    firsts = np.asarray(evaluator.firsts(evaluator.of_samples()), dtype=np.int64)
    table = pa.table(
        {
            "where": rows.dataset.data.column(WHERE).take(pa.array(firsts)).combine_chunks(),
            "sample": firsts,
            "length": rows.costs[firsts],
            **{f"{OF_GROUP}{name}": rows.group(name).take(pa.array(firsts)).combine_chunks() for name in rows.groups},
            **columns,
        }
    )
    inputs: list[str | None] = [None] * len(table)
    words: list[list[str] | None] = [None] * len(table)
    for place in _shown(table):
        sample = rows.sample(int(firsts[place]))
        inputs[place] = _short(task.modality.show_input(sample, task.processor))
        words[place] = task.words(sample)
    table = table.append_column("input", pa.array(inputs, pa.string()))
    if any(of_row is not None for of_row in words):
        table = table.append_column("words", pa.array(words, pa.list_(pa.string())))
    path.parent.mkdir(exist_ok=True)
    partial = partial_path(path)
    try:
        with open_new_bytes(partial) as file:
            pq.write_table(table, file, compression="zstd")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cut_row_records(run_folder: Path, *, after_step: int) -> None:
    """Delete the records of evaluations beyond the checkpoint that a run goes on from, and what was never finished."""
    for path in (run_folder / ROWS).glob("*"):
        _, _, step = path.stem.rpartition("-")
        if path.suffix == ".partial" or (step.isdecimal() and int(step) > after_step):
            remove(path)


def _columns(evaluator: Evaluator) -> dict[str, Any]:
    """The task's columns as Arrow arrays."""
    import pyarrow as pa

    records = evaluator.in_order()
    parts = []
    for start in range(0, len(records), CHUNK):
        columns = evaluator.columns(records[start : start + CHUNK])
        parts.append(pa.table({name: [_short(value) for value in values] for name, values in columns.items()}))
    whole = pa.concat_tables(parts, promote_options="default")
    return {name: whole.column(name).combine_chunks() for name in whole.column_names}


def _shown(table: Any) -> list[int]:
    """The places of rows whose input is kept."""
    names = table.column_names
    chosen = _largest(table, "loss") if "loss" in names else []
    if {"prediction", "label"}.issubset(names) and _are_numbers(table):
        labels, guesses = (table.column(name).to_numpy() for name in ("label", "prediction"))
        chosen += np.argsort(-out_of_order(labels, guesses), kind="stable")[:MOST_SHOWN].tolist()
    elif {"prediction", "label", "score"}.issubset(names):
        pairs = zip(table.column("prediction").to_pylist(), table.column("label").to_pylist(), strict=True)
        wrong = np.fromiter((guess != truth for guess, truth in pairs), dtype=bool, count=len(table))
        chosen += _largest(table, "score", among=wrong)
    return sorted(set(chosen))


def out_of_order(labels: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """(rows,): how far each row's place by its prediction is from that by its label, as a share of all places."""
    from scipy.stats import rankdata

    return np.abs(rankdata(guesses) - rankdata(labels)) / max(len(labels) - 1, 1)


def _are_numbers(table: Any) -> bool:
    import pyarrow as pa

    return all(pa.types.is_floating(table.schema.field(name).type) for name in ("label", "prediction"))


def _largest(table: Any, name: str, *, among: Sequence[bool] | np.ndarray | bool = True) -> list[int]:
    values = table.column(name).to_numpy(zero_copy_only=False)
    if values.dtype == object:  # none has any
        return []
    values = np.where(among, values, np.nan)
    order = np.argsort(-values, kind="stable")[:MOST_SHOWN]
    return [int(place) for place in order if not np.isnan(values[place])]


def _short(value: Any) -> Any:
    return value[:MOST_CHARACTERS] if isinstance(value, str) else value
