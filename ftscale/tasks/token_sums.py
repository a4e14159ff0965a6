"""Sums over the targets of each sample, and the scores that are made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftscale.modalities.collate import IGNORED
from ftscale.tasks.batch import Batch, Columns, Outputs
from ftscale.tasks.positions import FIRST_POSITIONS


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


def sums_of_positions(batch: Batch, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of each sample by how many tokens are before their targets, and the numbers of targets.

    (samples, stretches) each; stretches are of fewer than FIRST_POSITIONS tokens, fewer than twice, four times as many,
    ... losses: as of `sums_of_samples`, where a label stands at the token before its own.
    """
    chosen = batch.labels != IGNORED
    owners, places = batch.owners(chosen), chosen.nonzero(as_tuple=True)[1] + 1
    if "cu_seq_lens_q" in batch.inputs:
        places = places - batch.inputs["cu_seq_lens_q"].long()[owners]
    bounds = FIRST_POSITIONS * 2 ** torch.arange(32, device=places.device)
    stretches = torch.searchsorted(bounds, places, right=True)
    number = int(stretches.max()) + 1 if len(places) else 0
    sums = torch.zeros(2, len(batch) * number, device=losses.device)
    sums.index_add_(1, owners * number + stretches, torch.stack([losses.float(), torch.ones_like(losses.float())]))
    found = sums.view(2, len(batch), number)
    return found[0], found[1].long()


@dataclass(frozen=True)
class TokenRecord:
    """What evaluation keeps of a sample whose targets are tokens."""

    loss: float
    """The sum over its targets."""
    num_targets: int
    num_correct: int


def token_records(outputs: Outputs, batch: Batch) -> list[TokenRecord]:
    """One record a sample of what `sums_of_samples` gave."""
    sums = (outputs["losses"].tolist(), outputs["counts"].tolist(), outputs["correct"].tolist())
    return [TokenRecord(*of_sample) for of_sample in zip(*sums, strict=True)]


def token_columns(records: Sequence[TokenRecord]) -> Columns:
    """Of each sample the mean loss of its targets and the share of them that was right; None where it has none."""

    def means(values: Iterable[float]) -> list[float | None]:
        return [value / count if count else None for value, count in zip(values, counts, strict=True)]

    counts = [record.num_targets for record in records]
    losses, correct = (record.loss for record in records), (record.num_correct for record in records)
    return {"loss": means(losses), "targets": counts, "accuracy": means(correct)}


def token_scores(records: Sequence[TokenRecord]) -> dict[str, float]:
    """`loss` in nats a target, `perplexity`, and `token_accuracy`; not a number where there is no target."""
    count = sum(record.num_targets for record in records)
    loss = math.fsum(record.loss for record in records) / count if count else math.nan
    return {
        "loss": loss,
        "perplexity": math.inf if loss > 700 else math.exp(loss),  # a double ends at exp(709)
        "token_accuracy": sum(record.num_correct for record in records) / count if count else math.nan,
    }
