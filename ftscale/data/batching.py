"""The division of a global batch into micro-batches of bounded cost, equal in number on every rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ftscale.base.errors import counted
from ftscale.config.schema import BatchConfig

DEFAULT_MICRO_SIZE = 8

LAYOUTS = {
    "flat": "flat rows",
    "padded": "padded by length",
    "auto": "flat rows where the model takes them, else padded by length",
}
"""How a line tells what becomes of samples in a micro-batch, before a model is asked and after."""

Groups = list[np.ndarray]


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int
    world_size: int


@dataclass(frozen=True)
class Division:
    """The rule by which samples become micro-batches: what one may hold, and what it costs.

    `flat`: samples lie end to end without padding; otherwise each is padded to the longest of its micro-batch.
    """

    batch: BatchConfig
    flat: bool

    def divide(self, lengths: np.ndarray, *, world_size: int, num_micro: int = 0) -> list[Groups]:
        """Micro-batches of each rank for samples of these lengths (samples,) in tokens.

        Samples are sorted by length and cut into runs, so that neighbours pad little; the runs are dealt to the ranks
        by cost. Every rank gets the same number of micro-batches (`num_micro` at least, where given); where there are
        fewer samples than that, some are empty. The longest come first, so that memory runs out in the first step or
        never.

        Returns, for each rank, arrays of positions in `lengths`.
        """
        order = np.argsort(-lengths, kind="stable")
        wanted = len(self.cut(lengths[order]))
        per_rank = max(-(-wanted // world_size), num_micro, 1)
        runs = _cut_into(lengths[order], per_rank * world_size, division=self)
        groups = [order[start:stop] for start, stop in runs]
        groups.sort(key=lambda group: -self.cost(lengths[group]))
        groups += [order[:0]] * (per_rank * world_size - len(groups))
        ranks: list[Groups] = [[] for _ in range(world_size)]
        for index, group in enumerate(groups):  # there and back again, so that the first rank is not always heaviest
            turn, place = divmod(index, world_size)
            ranks[place if turn % 2 == 0 else world_size - 1 - place].append(group)
        return ranks

    @property
    def size(self) -> int:
        """Most samples of a micro-batch; 0 = no limit."""
        return self.batch.micro_size or (0 if self.batch.micro_tokens else DEFAULT_MICRO_SIZE)

    def cost(self, lengths: np.ndarray) -> int:
        """Tokens that the device works through, padding included."""
        if not len(lengths):
            return 0
        return int(lengths.sum() if self.flat else lengths.max() * len(lengths))

    def cut(self, lengths: np.ndarray, *, tokens: int | None = None) -> list[tuple[int, int]]:
        """Runs (start, stop) of descending lengths, each as long as the limits let it be.

        `tokens`: the most of a run, 0 = no limit; None = as the batch section says.
        """
        tokens, size = self.batch.micro_tokens if tokens is None else tokens, self.size
        runs, start, total = [], 0, 0
        for index, length in enumerate(lengths.tolist()):
            count = index - start
            cost = total + length if self.flat else int(lengths[start]) * (count + 1)
            if count and ((tokens and cost > tokens) or (size and count >= size)):
                runs.append((start, index))
                start, total = index, 0
            total += length
        return [*runs, (start, len(lengths))] if len(lengths) else runs


def _cut_into(lengths: np.ndarray, number: int, *, division: Division) -> list[tuple[int, int]]:
    """At most `number` runs with the smallest greatest cost that the limits allow."""
    low, high = int(lengths.max(initial=1)), max(division.cost(lengths), 1)
    if division.batch.micro_tokens:
        high = max(low, min(high, division.batch.micro_tokens))
    while low < high:
        middle = (low + high) // 2
        if len(division.cut(lengths, tokens=middle)) <= number:
            high = middle
        else:
            low = middle + 1
    runs = division.cut(lengths, tokens=high)
    while len(runs) < min(number, len(lengths)):  # equal lengths can leave runs to spare: halve the costliest
        widest = max((run for run in runs if run[1] - run[0] > 1), key=lambda run: division.cost(lengths[slice(*run)]))
        place, middle = runs.index(widest), (widest[0] + widest[1]) // 2
        runs[place : place + 1] = [(widest[0], middle), (middle, widest[1])]
    return runs


def describe_batch(batch: BatchConfig, *, world_size: int, layout: str | None) -> str:
    """How the global batch comes about, for the log. `layout`: None = samples are no rows of tokens (images)."""
    unit = batch.unit.removesuffix("s")
    parts = []
    if batch.micro_size or not batch.micro_tokens:
        parts.append(f"{counted(batch.micro_size or DEFAULT_MICRO_SIZE, 'sample')}")
    if batch.micro_tokens:
        parts.append(f"{counted(batch.micro_tokens, 'token')}")
    most = batch.micro_size or (DEFAULT_MICRO_SIZE if not batch.micro_tokens else batch.global_size)
    size = min(most, -(-batch.global_size // world_size))
    line = f"global batch {counted(batch.global_size, unit)}"
    if batch.unit == "samples" and not batch.micro_tokens:
        accumulation = -(-batch.global_size // (size * world_size))
        line += f" = {size} per device x {accumulation} accumulation x {counted(world_size, 'process')}"
    else:
        line += f" in micro-batches of at most {' and '.join(parts)}, over {counted(world_size, 'process')}"
    return line if layout is None else f"{line}, {LAYOUTS[layout]}"
