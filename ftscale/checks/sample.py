"""Some rows of the data, prepared in memory as training prepares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from ftscale.checks.fit import in_model_order
from ftscale.config import Config
from ftscale.data.prepare import CHUNK
from ftscale.data.sources import read_rows
from ftscale.tasks import build_task
from ftscale.tasks.base import KEPT, Row, Sample, Task
from ftscale.tasks.rows import left_out, prepare_rows

SAMPLE_ROWS = 2000
"""Rows of each part of the data that are looked at unless all are asked for."""


@dataclass
class Part:
    """Rows of data.train or data.eval and their samples, one for each row (with join_texts, fewer)."""

    rows: list[Row]
    samples: list[Sample]
    whole: bool
    """These are all of its rows."""
    num_rows: int | None
    """Rows of the part; None where they are not counted (a stream, a hub data set, a URL)."""

    @property
    def kept(self) -> list[Sample]:
        """Samples that training would use."""
        return [sample for sample in self.samples if sample["note"] in KEPT]


@dataclass
class DataSample:
    """What was read and prepared."""

    config: Config
    """With what the rows told filled in, e.g. labels."""
    task: Task
    train: Part
    evaluation: Part | None = field(default=None)
    learned_labels: bool = False
    """The classes are those of the rows, not of the configuration."""


def read_sample(config: Config, processor: Any, *, full: bool = False, count: bool = True) -> DataSample:
    """Read and prepare the first rows of each part, or all of them. Nothing is written.

    `count`: also count the rows of the training files, as the schedule needs it. Raises UserError as training would.
    """
    limit = None if full else SAMPLE_ROWS
    task = build_task(config.task)
    rows, num_rows = _read(config, task, "train", limit, count=count and not config.data.streaming)
    every = rows if num_rows == len(rows) or not count else _all_rows(config, task, "train")
    learned = task.fit(row for row in every if not left_out(task, row))
    learned = in_model_order(config, task, learned)
    config = config.model_copy(update={"task": config.task.model_copy(update=learned)})
    task = build_task(config.task)
    train = Part(rows, _prepare(task, rows, processor), num_rows == len(rows), num_rows)
    evaluation = None
    if config.data.eval:
        held, number = _read(config, task, "eval", limit, count=False)
        evaluation = Part(held, _prepare(task, held, processor), False, number)
    return DataSample(config, task, train, evaluation, learned_labels="labels" in learned)


def _read(config: Config, task: Task, part: str, limit: int | None, *, count: bool) -> tuple[list[Row], int | None]:
    rows = _all_rows(config, task, part)
    first = list(rows if limit is None else islice(rows, limit))
    if limit is None or len(first) < limit:
        return first, len(first)
    return first, len(first) + sum(1 for _ in rows) if count else None


def _all_rows(config: Config, task: Task, part: str) -> Iterable[Row]:
    return chain.from_iterable(
        read_rows(source, roles=task.columns, setting=f"data.{part}[{index}]")
        for index, source in enumerate(getattr(config.data, part))
    )


def _prepare(task: Task, rows: list[Row], processor: Any) -> list[Sample]:
    """In pieces, as training does it: joined texts are joined within a piece."""
    samples = []
    for start in range(0, len(rows), CHUNK):
        samples += prepare_rows(task, rows[start : start + CHUNK], processor)
    return samples
