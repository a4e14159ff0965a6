"""Loaders: for each optimizer step, this rank's micro-batches; for evaluation, this rank's share of the rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ftscale.base.signals import leave_signals_to_parent
from ftscale.data.batching import Division, Ranks
from ftscale.data.order import GlobalOrder
from ftscale.data.prepare import Prepared
from ftscale.data.sample import Sample

Collate = Callable[[Sequence[Sample]], Any]
"""Makes a micro-batch of samples (`tasks.batch.Batch`)."""


@dataclass
class Step:
    """This rank's part of an optimizer step."""

    micro_batches: list[tuple[Any, bool]]
    """Micro-batches, each with whether it counts: a filler keeps ranks in step and is weighed with zero."""
    counts: Mapping[str, float] | None
    """Targets of the global batch, over all ranks, by term; None = known in the micro-batches only."""
    tokens: int
    """Tokens of the global batch, over all ranks."""


class TrainingSteps(Dataset):
    """The optimizer steps of prepared rows: by number (from 0), this rank's part, a function of the order alone.

    `num_workers`: processes that collate ahead.
    """

    def __init__(
        self,
        samples: Prepared,
        order: GlobalOrder,
        collate: Collate,
        *,
        division: Division,
        ranks: Ranks,
        seed: int,
        num_steps: int,
        num_workers: int,
    ) -> None:
        self.samples = samples
        self.costs, self.counts = samples.costs, samples.counts  # read before worker processes begin
        self.order = order
        self.collate = collate
        self.division = division
        self.ranks = ranks
        self.seed = seed
        self.num_steps = num_steps
        self.num_workers = num_workers

    def after(self, step: int) -> Generator[Step, None, None]:
        """The steps behind the first `step`, collated ahead by worker processes where there are any."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(step, self.num_steps),  # type: ignore[arg-type]
            num_workers=self.num_workers,
            collate_fn=_as_is,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # else it draws from the generator of dropout, once more after each resume
        )
        batches = iter(loader)
        try:
            yield from batches
        finally:
            del batches  # its workers end with it, also where an error still holds this frame

    def where(self, row: int) -> str:
        """Where a row was read: file and line."""
        return self.samples.where(row)

    def global_rows(self, step: int) -> np.ndarray:
        """Row numbers of a step's global batch, in the global order."""
        epoch, place = self.order.locate(step)
        return self.order.epoch(epoch)[place]

    def __getitem__(self, step: int) -> Step:
        epoch, _ = self.order.locate(step)
        rows = self.global_rows(step)
        lengths = self.costs[rows]
        groups = self.division.divide(lengths, world_size=self.ranks.world_size)[self.ranks.rank]
        filler, repeats = np.array([np.argmin(lengths)]), _repeats(rows)
        chosen = [group if len(group) else filler for group in groups]
        micro_batches = [
            (self._micro_batch(rows[places], repeats[places], epoch), bool(len(group)))
            for places, group in zip(chosen, groups, strict=True)
        ]
        counts = {name: int(of_rows[rows].sum()) for name, of_rows in self.counts.items()}
        return Step(micro_batches, counts or None, tokens=int(lengths.sum()))

    def _micro_batch(self, rows: np.ndarray, repeats: np.ndarray, epoch: int) -> Any:
        samples = [self.samples.sample(int(row), epoch=epoch, seed=self.seed) for row in rows]
        return self.collate(
            [replace(sample, repeat=int(repeat)) for sample, repeat in zip(samples, repeats, strict=True)]
        )


def evaluation_batches(
    samples: Prepared, collate: Collate, *, division: Division, ranks: Ranks, seed: int
) -> Iterator[Any]:
    """This rank's micro-batches of a whole data set; every rank gets the same number.

    Where they do not come out even, a rank does its first one again; the evaluator counts each row once.
    """
    groups = division.divide(samples.costs, world_size=ranks.world_size)[ranks.rank]
    filler = np.asarray([int(np.argmin(samples.costs))])
    for group in groups:
        chosen = group if len(group) else filler
        yield collate([samples.sample(int(row), seed=seed) for row in chosen])


def _repeats(rows: np.ndarray) -> np.ndarray:
    """How often each row came before: (rows,), of a source with a weight above 1."""
    _, firsts, groups = np.unique(rows, return_index=True, return_inverse=True)
    repeats = np.zeros(len(rows), dtype=np.int64)
    if len(firsts) < len(rows):
        order = np.argsort(rows, kind="stable")
        starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
        repeats[order] = np.arange(len(rows)) - starts[groups[order]]
    return repeats


def _begin_worker(number: int) -> None:
    leave_signals_to_parent()


def _as_is(step: Step) -> Step:
    return step
