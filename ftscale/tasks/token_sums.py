"""Sums over the targets of each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ftscale.modalities.collate import IGNORED
from ftscale.tasks.batch import Batch, Outputs


def sums_of_samples(batch: Batch, losses: Tensor, correct: Tensor) -> Outputs:
    """`losses`, `counts` and `correct` of each sample: (samples,).

    losses: (targets,) float32, correct: (targets,) bool, both in row-major order of the batch's labels.
    """
    owners = batch.owners(batch.labels != IGNORED)
    sums = torch.zeros(3, len(batch), device=losses.device)
    ones = torch.ones_like(losses, dtype=torch.float32)
    sums.index_add_(1, owners, torch.stack([losses.float(), ones, correct.float()]))
    return {"losses": sums[0], "counts": sums[1].long(), "correct": sums[2].long()}


def sums_of_targets(batch: Batch, values: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over each sample's targets, with its graph, and their number: (samples,) float32 each.

    values: (targets,) float32, in row-major order of the batch's labels.
    """
    owners = batch.owners(batch.labels != IGNORED)
    nothing = values.new_zeros(len(batch))
    return nothing.index_add(0, owners, values), nothing.index_add(0, owners, torch.ones_like(values))
