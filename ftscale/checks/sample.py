"""Some rows of the data, drawn with a seed and prepared in memory as training prepares them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ftscale.base.errors import UserError
from ftscale.base.seeding import derive_seed
from ftscale.config import Config
from ftscale.data.census import content_of
from ftscale.data.prepare import CHUNK, SourceReport, part_problems, sift
from ftscale.data.sample import Sample
from ftscale.data.sources import read_rows
from ftscale.methods import build_method
from ftscale.methods.base import Method
from ftscale.precheck.fit import fitted
from ftscale.run.prepared_data import Preparer, held_out, splits
from ftscale.tasks.base import Row, Task
from ftscale.tasks.rows import left_out

SAMPLE_ROWS = 2000
"""Rows of each part of the data that are looked at unless all are asked for."""

Placed = tuple[int, Row]
"""A row with the number of its source."""


@dataclass
class Part:
    """Rows of data.train, data.eval or data.test and their samples, one for each row (with join_texts, fewer)."""

    rows: list[Row]
    samples: list[Sample]
    num_rows: int | None
    """Rows of the part; None where they are not counted (a stream)."""
    reports: list[SourceReport]
    """What became of the rows of each source."""

    @property
    def whole(self) -> bool:
        """These are all of its rows."""
        return len(self.rows) == self.num_rows

    @property
    def kept(self) -> list[Sample]:
        """Samples that training would use."""
        return [sample for sample in self.samples if not sample.drop]


@dataclass
class DataSample:
    """What was read and prepared."""

    config: Config
    """With what the rows told filled in, e.g. labels."""
    task: Method
    train: Part
    evaluation: Part | None = None
    test: Part | None = None
    problems: list[str] = field(default_factory=list)
    """Why training would refuse the rows."""
    seen: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    """Hashes of the inputs and of the whole contents of all training rows that were read, drawn or not."""
    learned_labels: bool = False
    """The classes are those of the rows, not of the configuration."""

    def overlap(self, part: Part) -> int:
        """Rows of a part that are, in all their columns, training rows too."""
        return sum(hashes[1] in self.seen[1] for hashes in self.contents(part).tolist())

    def shared_inputs(self, part: Part) -> int:
        """Rows of a part whose input is that of a training row."""
        return sum(hashes[0] in self.seen[0] for hashes in self.contents(part).tolist())

    def contents(self, part: Part) -> np.ndarray:
        """(rows, 2) int64, see `census.content_of`."""
        inputs = self.config.task.input_columns
        return np.array([content_of(row, inputs=inputs) for row in part.rows], dtype=np.int64).reshape(-1, 2)


def read_sample(config: Config, processor: Any, *, full: bool = False) -> DataSample:
    """Read each part of the data, and prepare a seeded draw of its rows, or all of them. Nothing is written.

    Of a stream, the first rows. Raises UserError as training would where the training rows cannot be read.
    `processor`: see `check_config`.
    """
    size = None if full else SAMPLE_ROWS
    task, data = build_method(config.method, config.task), config.data
    held = held_out(config, task) if splits(config) else None
    seen: tuple[set[int], set[int]] = (set(), set())
    drawn = {name: Draw(size, seed=derive_seed(config.seed, "check", name)) for name in ("train", "eval", "test")}

    def training() -> Iterator[Row]:
        for number, (source, row) in _numbered(_part_rows(config, task, "train")):
            is_held = held is not None and number in held[source]
            drawn["eval" if is_held else "train"].add((source, row))
            if left_out(task.settings, row):
                continue
            if not is_held:
                for hashes, value in zip(seen, content_of(row, inputs=config.task.input_columns), strict=True):
                    hashes.add(value)
            yield row

    rows = training()
    config, bound, learned = fitted(config, task, processor, task.fit(rows))
    counted = _exhaust(rows, most=SAMPLE_ROWS if data.streaming and not full else None)
    prepare = Preparer(bound)
    sample = DataSample(
        config, prepare.task, _prepared(drawn["train"], prepare, config=config, name="train", counted=counted)
    )
    sample.seen, sample.learned_labels = seen, "labels" in learned
    sample.problems = part_problems(sample.train.reports, name="train", data=data)
    for name in ("eval", "test"):
        if not (getattr(data, name) or (name == "eval" and held is not None)):
            continue
        try:
            for placed in _part_rows(config, task, name) if getattr(data, name) else ():
                drawn[name].add(placed)
            part = _prepared(drawn[name], prepare, config=config, name=name, counted=True)
        except UserError as error:
            sample.problems += error.problems
            continue
        sample.problems += part_problems(part.reports, name=name, data=data)
        sample.evaluation, sample.test = (part, sample.test) if name == "eval" else (sample.evaluation, part)
    return sample


class Draw:
    """A number of rows of all that are added, each as likely as any other (Vitter 1985, algorithm R)."""

    def __init__(self, size: int | None, *, seed: int) -> None:
        self.size = size
        """None = all."""
        self.count = 0
        """Rows added."""
        self._random = random.Random(seed)
        self._chosen: list[tuple[int, Placed]] = []

    def add(self, placed: Placed) -> None:
        """Take the row, or leave it."""
        self.count += 1
        if self.size is None or len(self._chosen) < self.size:
            self._chosen.append((self.count, placed))
        elif (place := self._random.randrange(self.count)) < self.size:
            self._chosen[place] = (self.count, placed)

    @property
    def rows(self) -> list[Placed]:
        """Those chosen, in the order in which they came."""
        return [placed for _, placed in sorted(self._chosen, key=lambda item: item[0])]


def _part_rows(config: Config, task: Task, name: str) -> Iterator[Placed]:
    for index, source in enumerate(getattr(config.data, name)):
        for row in read_rows(source, roles=task.settings.roles, setting=f"data.{name}[{index}]"):
            yield index, row


def _numbered(rows: Iterable[Placed]) -> Iterator[tuple[int, Placed]]:
    """Each with its number in its source."""
    current, number = -1, 0
    for source, row in rows:
        number = number + 1 if source == current else 0
        current = source
        yield number, (source, row)


def _exhaust(rows: Iterator[Row], *, most: int | None) -> bool:
    """Read on, at most so many rows; whether these are all."""
    for _ in islice(rows, most):
        pass
    return most is None or next(rows, None) is None


def _prepared(draw: Draw, prepare: Preparer, *, config: Config, name: str, counted: bool) -> Part:
    """Prepare the draw in pieces of a source, as training does: joined texts are joined within a piece."""
    sources = getattr(config.data, name) or config.data.train
    reports = [SourceReport(source.path, in_tokens=prepare.task.modality.in_tokens) for source in sources]
    placed, samples = draw.rows, []
    for index, report in enumerate(reports):
        own = [row for source, row in placed if source == index]
        for start in range(0, len(own), CHUNK):
            chunk = prepare(own[start : start + CHUNK])
            samples += chunk
            sift(chunk, report)
    return Part([row for _, row in placed], samples, draw.count if counted else None, reports)
