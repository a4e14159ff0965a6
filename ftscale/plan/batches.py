"""The longest micro-batch that the data gives, and how many there are in a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ftscale.checks.sample import DataSample
from ftscale.config import Config
from ftscale.data.batching import Division
from ftscale.modalities.collate import Layout
from ftscale.tasks.batch import Batch


class MicroBatches:
    """Micro-batches of a sample of rows for a number of devices."""

    def __init__(self, sample: DataSample, *, world_size: int) -> None:
        self.sample = sample
        self.world_size = world_size
        self.samples = sample.train.kept
        self.lengths = np.asarray([item.cost for item in self.samples])

    def longest(self, config: Config) -> Callable[[Layout], Batch]:
        """Makes the costliest micro-batch: of the global batch that holds the longest rows, a bound for any order."""
        return lambda layout: self._collate(self._longest_rows(config, flat=layout == "flat"), layout)

    def shortest(self, layout: Layout = "padded") -> Batch:
        """Two short rows, to try out a model with."""
        return self._collate(np.argsort(self.lengths, kind="stable")[:2], layout)

    def tokens(self, config: Config, *, flat: bool) -> int:
        """Tokens of the longest micro-batch, padding included."""
        lengths = self.lengths[self._longest_rows(config, flat=flat)]
        return int(lengths.sum() if flat else lengths.max() * len(lengths))

    def per_step(self, config: Config, *, flat: bool) -> tuple[int, float]:
        """Micro-batches of a device, and mean tokens of a device, in an optimizer step."""
        size = self.global_rows(config)
        batches = [self.lengths[start : start + size] for start in range(0, len(self.lengths), size)]
        batches = [batch for batch in batches if len(batch) == size] or [np.resize(self.lengths, size)]
        counts, tokens = [], []
        for batch in batches[:50]:
            first = Division(config.batch, flat=flat).divide(batch, world_size=self.world_size)[0]
            counts.append(len(first))
            costs = [batch[group] for group in first if len(group)]
            tokens.append(sum(int(part.sum() if flat else part.max() * len(part)) for part in costs))
        return max(counts), float(np.mean(tokens))

    def mean_tokens(self, config: Config) -> float:
        """Real tokens of a global batch."""
        return float(self.lengths.mean()) * self.global_rows(config)

    def global_rows(self, config: Config) -> int:
        """Rows of a global batch; with `batch.unit: targets`, as many as hold them in the mean."""
        if config.batch.unit == "samples":
            return config.batch.global_size
        mean = sum(item.targets for item in self.samples) / len(self.samples)
        return max(1, round(config.batch.global_size / max(mean, 1)))

    def _longest_rows(self, config: Config, *, flat: bool) -> np.ndarray:
        size = self.global_rows(config)
        rows = np.resize(np.argsort(-self.lengths, kind="stable"), size)  # again from the longest where there are few
        groups = Division(config.batch, flat=flat).divide(self.lengths[rows], world_size=self.world_size)
        lengths = self.lengths[rows]

        def cost(group: np.ndarray) -> int:
            return int(lengths[group].sum() if flat else lengths[group].max() * len(group)) if len(group) else 0

        return rows[max((group for of_rank in groups for group in of_rank), key=cost)]

    def _collate(self, rows: np.ndarray, layout: Layout) -> Batch:
        # as if each stood there anew: what is read once in these rows may differ in others as long
        samples = [replace(self.samples[int(row)], number=int(row), repeat=place) for place, row in enumerate(rows)]
        return self.sample.task.collate(samples, layout=layout, train=True)
