"""Streamed training rows: a global order made block by block, of which each rank prepares its own part.

The order: sources are read in file order and mixed by their weights into blocks of `data.shuffle_buffer` rows; each
block is shuffled with a seed of its own (seed, epoch, block). A global batch is the next `batch.global_size` rows (or
samples, where they are joined from several rows; each rank then prepares all of them, to know where samples end). So
the order depends on the data and the seed alone, and a position is the files' positions at the start of the current
block and the number of rows used of it: to go on, at most one block is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.base.seeding import derive_seed
from ftscale.config.schema import DataConfig
from ftscale.data.batching import Division, Ranks
from ftscale.data.loader import Collate, Step
from ftscale.data.prepare import CHUNK, Prepare, Roles, SourceReport, sift, template_warnings
from ftscale.data.sample import Sample
from ftscale.data.sources import open_stream

ENOUGH_ROWS = 1000  # of a stream, before its share of rows without targets is judged


@dataclass
class StreamPosition:
    """Where a stream goes on; JSON-able by `vars`."""

    epoch: int = 0
    block: int = 0
    used: int = 0
    """Rows (or joined samples) used of the block."""
    rows: int = 0
    """Rows (or joined samples) used altogether."""
    files: list[Any] = field(default_factory=list)
    """Each source's position at the start of the block; empty = at their starts."""
    ended: list[int] = field(default_factory=list)
    """Sources that have been read to their end in this epoch."""


class StreamSteps:
    """Optimizer steps from a stream. Collective: all ranks take them together.

    `gather`: every rank's value on every rank; `joins`: `prepare` makes samples from several rows together, so that
    they are not one a row.
    """

    def __init__(
        self,
        data: DataConfig,
        prepare: Prepare,
        collate: Collate,
        *,
        roles: Roles,
        joins: bool,
        division: Division,
        ranks: Ranks,
        seed: int,
        gather: Callable[[Any], list[Any]],
    ) -> None:
        self.data = data
        self.sources = data.train
        self.prepare = prepare
        self.collate = collate
        self.roles = roles
        self.joins = joins
        self.division = division
        self.ranks = ranks
        self.seed = seed
        self.gather = gather
        self.position = StreamPosition()
        """After the last step that was given out."""
        self.report = SourceReport("stream")
        self._spare: Sample | None = None
        self._places: dict[int, str] = {}
        self._warned = False

    def where(self, row: int) -> str:
        """Where a row of this rank's part of the last step was read: file and line."""
        return self._places[row]

    def after(self, step: int) -> Generator[Step, None, None]:
        """The steps from the stream's own position on; it does not follow from the number of the step."""
        return self.steps(self.position)

    def steps(self, position: StreamPosition) -> Generator[Step, None, None]:
        """Steps from a position on, for ever: epoch after epoch."""
        rows = self._rows(position)
        while batch := list(islice(rows, self.division.batch.global_size)):
            step = self._step([row for row, _ in batch], first=batch[0][1].rows - 1)
            self.position = batch[-1][1]
            if step is not None:
                yield step

    def _rows(self, position: StreamPosition) -> Iterator[tuple[dict[str, Any], StreamPosition]]:
        """Rows (or joined samples) in the global order, each with the position after it."""
        readers = self._open(position)
        while True:
            block, files, ended = self._block(position, readers)
            if not block and position.block == 0 and not position.used:
                raise UserError("data.train: the stream has no rows.")
            for row in islice(self._joined(block) if self.joins else block, position.used, None):
                position = replace(position, used=position.used + 1, rows=position.rows + 1)
                yield row, position
            if len(ended) == len(self.sources):
                position = StreamPosition(position.epoch + 1, rows=position.rows)
                readers = self._open(position)
            else:
                position = StreamPosition(position.epoch, position.block + 1, 0, position.rows, files, ended)

    def _open(self, position: StreamPosition) -> list[Iterator[tuple[dict[str, Any], Any]]]:
        files = position.files or [None] * len(self.sources)
        return [
            open_stream(source, roles=self.roles, position=files[index], setting=f"data.train[{index}]")
            for index, source in enumerate(self.sources)
        ]

    def _block(
        self, position: StreamPosition, readers: list[Iterator[tuple[dict[str, Any], Any]]]
    ) -> tuple[list[dict[str, Any]], list[Any], list[int]]:
        """The rows of a block in their order, and the state of the sources behind it."""
        rng = np.random.default_rng(derive_seed(self.seed, "stream", position.epoch, position.block))
        files = list(position.files) or [None] * len(self.sources)
        ended = list(position.ended)
        rows: list[dict[str, Any]] = []
        while len(rows) < self.data.shuffle_buffer and len(ended) < len(self.sources):
            open_sources = [index for index in range(len(self.sources)) if index not in ended]
            weights = np.array([self.sources[index].weight for index in open_sources])
            size = self.data.shuffle_buffer - len(rows)
            for index in rng.choice(open_sources, size=size, p=weights / weights.sum()).tolist():
                if (item := next(readers[index], None)) is None:
                    ended.append(index)
                    break  # the others are drawn anew without it
                rows.append(item[0])
                files[index] = item[1]
        if self.data.shuffle:
            rows = [rows[index] for index in rng.permutation(len(rows))]
        return rows, files, ended

    def _joined(self, block: list[dict[str, Any]]) -> Iterator[Any]:
        """The samples of a block, joined within as many rows as in a data set that is prepared beforehand."""
        return chain.from_iterable(self.prepare(block[start : start + CHUNK]) for start in range(0, len(block), CHUNK))

    def _step(self, rows: list[dict[str, Any]], *, first: int) -> Step | None:
        """This rank prepares every world_size-th row; the number of micro-batches is agreed. None: no target at all."""
        numbers = range(self.ranks.rank, len(rows), self.ranks.world_size)
        own_rows = [rows[number] for number in numbers]
        samples: list[Sample] = []
        own_samples: Any = own_rows if self.joins else self.prepare(own_rows)
        for number, sample in zip(numbers, own_samples, strict=True):
            kept = sift([sample], self.report)
            samples += [replace(item, number=first + number, seed=self.seed) for item in kept]
        self._places = {sample.number: sample.where for sample in samples}
        self._warn()
        lengths = np.array([sample.cost for sample in samples], dtype=np.int64)
        own = {
            "micro": len(self.division.divide(lengths, world_size=1)[0]),
            "counts": [sample.counts for sample in samples],
            "tokens": int(lengths.sum()),
            "read": self.report.read,
            "empty": self.report.dropped.get("no_target", 0),
            "spare": min(samples, key=lambda sample: sample.cost, default=None) if self._spare is None else None,
        }
        ranks = self.gather(own)
        self._check([rank["read"] for rank in ranks], [rank["empty"] for rank in ranks])
        all_counts = [counts for rank in ranks for counts in rank["counts"]]
        counts = None if None in all_counts else _added(all_counts)
        if not all_counts or (counts is not None and not any(counts.values())):
            return None
        self._spare = self._spare or next(rank["spare"] for rank in ranks if rank["spare"])
        num_micro = max(rank["micro"] for rank in ranks)
        [groups] = self.division.divide(lengths, world_size=1, num_micro=num_micro)
        return Step(
            [(self.collate([samples[i] for i in group] or [self._spare]), bool(len(group))) for group in groups],
            counts,
            tokens=sum(rank["tokens"] for rank in ranks),
        )

    def _warn(self) -> None:
        """Warn of the first chats from which a template leaves something out."""
        if not self._warned and (warnings := template_warnings(self.report, setting="data.train")):
            self._warned = True
            for warning in warnings:
                log.warning("%s", warning)

    def _check(self, read: list[int], empty: list[int]) -> None:
        if sum(read) >= ENOUGH_ROWS and sum(empty) / sum(read) > self.data.max_empty:
            raise UserError(
                f"data.train: {sum(empty)} of the first {sum(read)} rows have no target left, more than "
                f"data.max_empty = {self.data.max_empty:.1%}; look at the columns and task.max_length, or raise it."
            )


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {name: sum(one[name] for one in counts) for name in counts[0]} if counts else {}
