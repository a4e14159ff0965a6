"""Loaders: for each optimizer step, this rank's micro-batches; for evaluation, this rank's share of the rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ftscale.data.batching import Division, Ranks
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
    """The optimizer steps of prepared rows: by number (from 0), this rank's part, a function of the order alone.

    `samples`: the prepared rows, with their `length` and `where`; `num_workers`: processes that collate ahead.
    """

    def __init__(
        self,
        samples: Any,
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
        self.rows = samples.remove_columns(["length", "targets", "where"])
        self.lengths = np.asarray(samples["length"])
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
        return self.samples[row]["where"]

    def global_rows(self, step: int) -> np.ndarray:
        """Row numbers of a step's global batch, in the global order."""
        epoch, place = self.order.locate(step)
        return self.order.epoch(epoch)[place]

    def __getitem__(self, step: int) -> Step:
        epoch, _ = self.order.locate(step)
        rows = self.global_rows(step)
        lengths = self.lengths[rows]
        groups = self.division.divide(lengths, world_size=self.ranks.world_size)[self.ranks.rank]
        shortest = rows[[int(np.argmin(lengths))]]
        micro_batches = [
            (self._micro_batch(rows[group] if len(group) else shortest, epoch), bool(len(group))) for group in groups
        ]
        return Step(micro_batches, targets=int(self.order.targets[rows].sum()), tokens=int(lengths.sum()))

    def _micro_batch(self, rows: np.ndarray, epoch: int) -> dict[str, Any]:
        return self.collate(
            [{**self.rows[int(row)], "row": int(row), "epoch": epoch, "seed": self.seed} for row in rows]
        )


def evaluation_batches(
    rows: Any, lengths: np.ndarray, collate: Collate, *, division: Division, ranks: Ranks, seed: int
) -> Iterator[dict[str, Any]]:
    """This rank's micro-batches of a whole data set; every rank gets the same number.

    Where they do not come out even, a rank does its first one again; the evaluator counts each row once.
    """
    groups = division.divide(lengths, world_size=ranks.world_size)[ranks.rank]
    filler = np.asarray([int(np.argmin(lengths))])
    for group in groups:
        chosen = group if len(group) else filler
        yield collate([{**rows[int(row)], "row": int(row), "epoch": 0, "seed": seed} for row in chosen])


def _begin_worker(number: int) -> None:
    leave_signals_to_parent()


def _as_is(step: Step) -> Step:
    return step
