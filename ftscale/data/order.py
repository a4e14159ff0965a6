"""The seeded global order: which samples make up each optimizer step's global batch.

A function of (data, seed, epoch) and of nothing else: not of ranks, workers, micro-batches or restarts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftscale.base.seeding import derive_seed
from ftscale.config.schema import BatchConfig

GROUPED_BATCHES = 100
"""Global batches among whose rows those of like length are put together. Multi30k, batches of 32: padding is 86 % of
the real tokens in random batches, 25 % with 10, 20 % with 100, 19 % with all sorted."""


@dataclass(frozen=True)
class SourceRows:
    """The rows of one source inside a data set: numbers `start` to `stop - 1`, each read `weight` times an epoch."""

    start: int
    stop: int
    weight: float


class GlobalOrder:
    """The global batches of every epoch.

    `targets`: (rows,) int, supervised tokens of each row; `sources`: which rows are whose. `lengths`: (rows,) int,
    where global batches shall have rows of like length; None = a plain random order.
    """

    def __init__(
        self,
        targets: np.ndarray,
        sources: Sequence[SourceRows],
        *,
        batch: BatchConfig,
        shuffle: bool,
        seed: int,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.targets = targets
        self.sources = tuple(sources)
        self.batch = batch
        self.shuffle = shuffle
        self.seed = seed
        self.lengths = lengths
        self._epoch: int | None = None
        self._batches: list[np.ndarray] = []
        self._sizes: dict[int, int] = {}

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Row numbers of each global batch of an epoch; the last batch may be smaller."""
        if epoch != self._epoch:
            rows = self._rows(epoch)
            self._epoch, self._batches = epoch, self._cut(rows) if self.lengths is None else self._grouped(rows, epoch)
        return self._batches

    def num_steps(self, epochs: float) -> int:
        """Optimizer steps of so many passes over the data."""
        whole, part = int(epochs), epochs - int(epochs)
        steps = sum(self.size(epoch) for epoch in range(whole))
        return max(1, steps + (round(part * self.size(whole)) if part else 0))

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step counted from 0, and the batch's place in it."""
        epoch = 0
        while step >= (size := self.size(epoch)):
            step -= size
            epoch += 1
        return epoch, step

    def size(self, epoch: int) -> int:
        """Optimizer steps of an epoch."""
        if epoch not in self._sizes:
            self._sizes[epoch] = self._count(epoch)
        return self._sizes[epoch]

    def _count(self, epoch: int) -> int:
        if self.batch.unit == "samples" and all(float(source.weight).is_integer() for source in self.sources):
            rows = sum((source.stop - source.start) * int(source.weight) for source in self.sources)
            return -(-rows // self.batch.global_size)
        return len(self.epoch(epoch))

    def _rows(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng(derive_seed(self.seed, "order", epoch))
        parts = []
        for source in self.sources:
            rows = np.arange(source.start, source.stop)
            whole, part = int(source.weight), source.weight - int(source.weight)
            parts.extend([rows] * whole)
            if part:
                parts.append(np.sort(rng.choice(rows, size=max(1, round(part * len(rows))), replace=False)))
        rows = np.concatenate(parts)
        return rng.permutation(rows) if self.shuffle else rows

    def _grouped(self, rows: np.ndarray, epoch: int) -> list[np.ndarray]:
        """Global batches cut from rows that are sorted by length a stretch at a time, in a random order."""
        assert self.lengths is not None
        random_batches = self._cut(rows)
        stretches = [
            np.concatenate(random_batches[start : start + GROUPED_BATCHES])
            for start in range(0, len(random_batches), GROUPED_BATCHES)
        ]
        batches = self._cut(np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in stretches]))
        places = np.random.default_rng(derive_seed(self.seed, "batches", epoch)).permutation(len(batches))
        return [batches[place] for place in places]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        size = self.batch.global_size
        if self.batch.unit == "samples":
            edges = list(range(size, len(rows), size))
        else:  # a batch closes with the row that reaches the wanted number of targets
            filled = np.cumsum(self.targets[rows])
            edges, start = [], 0
            while (edge := int(np.searchsorted(filled, start + size)) + 1) < len(rows):
                edges.append(edge)
                start = int(filled[edge - 1])
        return np.split(rows, edges)
