"""Loaders: for each optimizer step, this rank's micro-batches; for evaluation, this rank's share of the rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ftscale.config.schema import BatchConfig
from ftscale.data.batching import divide
from ftscale.data.order import GlobalOrder
from ftscale.processes import leave_signals_to_parent

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


@dataclass
class Step:
    """This rank's part of an optimizer step."""

    micro_batches: list[tuple[dict[str, Any], bool]]
    """Micro-batches, each with whether it counts: a filler keeps ranks in step and is weighed with zero."""
    targets: int
    """Targets of the global batch, over all ranks."""
    tokens: int
    """Tokens of the global batch, over all ranks."""


class TrainingSteps(Dataset):
    """Optimizer step number (from 0) to this rank's micro-batches: a function of the order alone."""

    def __init__(
        self,
        rows: Any,
        order: GlobalOrder,
        lengths: np.ndarray,
        collate: Collate,
        *,
        batch: BatchConfig,
        flat: bool,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self.rows = rows
        self.order = order
        self.lengths = lengths
        self.collate = collate
        self.batch = batch
        self.flat = flat
        self.rank = rank
        self.world_size = world_size
        self.seed = seed

    def global_rows(self, step: int) -> np.ndarray:
        """Row numbers of a step's global batch, in the global order."""
        epoch, place = self.order.locate(step)
        return self.order.epoch(epoch)[place]

    def __getitem__(self, step: int) -> Step:
        epoch, _ = self.order.locate(step)
        rows = self.global_rows(step)
        lengths = self.lengths[rows]
        ranks = divide(lengths, batch=self.batch, flat=self.flat, world_size=self.world_size)
        shortest = rows[[int(np.argmin(lengths))]]
        micro_batches = [
            (self._micro_batch(rows[group] if len(group) else shortest, epoch), bool(len(group)))
            for group in ranks[self.rank]
        ]
        return Step(micro_batches, targets=int(self.order.targets[rows].sum()), tokens=int(lengths.sum()))

    def _micro_batch(self, rows: np.ndarray, epoch: int) -> dict[str, Any]:
        return self.collate(
            [{**self.rows[int(row)], "row": int(row), "epoch": epoch, "seed": self.seed} for row in rows]
        )


def iterate_steps(steps: TrainingSteps, *, start: int, stop: int, num_workers: int) -> Generator[Step, None, None]:
    """The steps `start` to `stop - 1`, collated ahead by worker processes where there are any."""
    loader = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, stop),  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it draws from the generator of dropout, once more after each resume
    )
    batches = iter(loader)
    try:
        yield from batches
    finally:
        del batches  # its workers end with it, also where an error still holds this frame


def evaluation_batches(
    rows: Any,
    lengths: np.ndarray,
    collate: Collate,
    *,
    batch: BatchConfig,
    flat: bool,
    rank: int,
    world_size: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """This rank's micro-batches of a whole data set; every rank gets the same number.

    Where they do not come out even, a rank does its first one again; the evaluator counts each row once.
    """
    ranks = divide(lengths, batch=batch, flat=flat, world_size=world_size)
    filler = np.asarray([int(np.argmin(lengths))])
    for group in ranks[rank]:
        chosen = group if len(group) else filler
        yield collate([{**rows[int(row)], "row": int(row), "epoch": 0, "seed": seed} for row in chosen])


def _begin_worker(number: int) -> None:
    leave_signals_to_parent()


def _as_is(step: Step) -> Step:
    return step
