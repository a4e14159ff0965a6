"""Losses that compare vectors: of one batch, or of the whole global batch by two passes over its micro-batches.

Sources: InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with the other texts of a batch as negatives (Henderson et
al. 2017, arXiv:1705.00652); the two passes (Gao et al. 2021, arXiv:2101.06983); CoSENT (Su 2022); batch-hard triplets
(Hermans et al. 2017, arXiv:1703.07737); margin-MSE (Hofstätter et al. 2020, arXiv:2010.02666); contrastive (Hadsell et
al. 2006); Matryoshka (Kusupati et al. 2022, arXiv:2205.13147).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ftscale.data.loader import Step
from ftscale.tasks.batch import Batch
from ftscale.tasks.context import Context

GRADIENT, LOSSES = "gradient", "losses"
"""In a batch's `extra` behind the first pass: the gradient of the loss by the samples' vectors, (samples, most
sequences, dim) float32, and each sample's loss, (samples,) float32."""


@dataclass(frozen=True)
class Compared:
    """What a loss is taken over: samples of several sequences each, one after the other."""

    vectors: Tensor
    """(sequences, dim) float32."""
    numbers: Sequence[int]
    """How many sequences each sample is: plain numbers, so that a forecast knows the shapes of all that is made."""
    ids: Tensor
    """(sequences,) int64: the same for the same text."""
    labels: Tensor
    """(samples,): scores as float32, or classes as int64."""
    weights: Tensor
    """(samples,) float32."""
    keys: Tensor
    """(samples,) int64: what puts samples in one order, however a step is cut up."""

    @cached_property
    def firsts(self) -> Tensor:
        """(samples,) int64: the place of each sample's first sequence."""
        return self.places(list(accumulate(self.numbers[:-1], initial=0)))

    @cached_property
    def seconds(self) -> Tensor:
        """(samples,) int64: the place behind, which is another sample's, or the first again, of one sequence alone."""
        return (self.firsts + 1).clamp(max=len(self.vectors) - 1)

    @cached_property
    def owners(self) -> Tensor:
        """(sequences,) int64: the sample of each sequence."""
        return self.places([sample for sample, number in enumerate(self.numbers) for _ in range(number)])

    def places(self, values: Sequence[int]) -> Tensor:
        """As int64, where the vectors are."""
        return torch.tensor(values, dtype=torch.int64, device=self.vectors.device)

    def cut_to(self, size: int) -> Compared:
        """The same with the first `size` numbers of each vector."""
        return replace(self, vectors=self.vectors[:, :size])

    def similarities(self) -> Tensor:
        """(samples,) float32: the cosine of each sample's first two sequences."""
        return functional.cosine_similarity(self.vectors[self.firsts], self.vectors[self.seconds])


Loss = Callable[[Compared], Tensor]
"""The loss of each sample, weighted, with its graph: (samples,) float32."""


def infonce(compared: Compared, *, temperature: float, symmetric: bool) -> Tensor:
    """How well the first sequence finds the second one of its sample among all that are no first ones.

    Each text stands there once. One that is known to be right, as the second sequence of a sample with the same first
    one, is no negative; nor is the first one itself. A sample of one sequence is a text that others are compared with.
    """
    starts = list(accumulate(compared.numbers, initial=0))
    asks = [sample for sample, number in enumerate(compared.numbers) if number > 1]
    askers = {starts[sample] for sample in asks}
    anchors = compared.places(sorted(askers))
    others = compared.places([place for place in range(starts[-1]) if place not in askers])
    weights, there = compared.weights[compared.places(asks)], compared.weights[compared.owners] > 0
    keys = compared.keys[compared.owners]
    vectors = functional.normalize(compared.vectors, dim=-1)
    rights, asked, right = vectors[anchors + 1], compared.ids[anchors], compared.ids[anchors + 1]
    own = vectors[anchors].mul(rights).sum(dim=-1) / temperature
    scores = vectors[anchors] @ vectors[others].T / temperature
    barred = _barred(asked, right, compared.ids[others], there=there[others], keys=keys[others])
    losses = _cross_entropy(own, scores, barred=barred)
    if symmetric:
        scores = rights @ vectors[anchors].T / temperature
        barred = _barred(right, asked, asked, there=there[anchors], keys=keys[anchors])
        losses = (losses + _cross_entropy(own, scores, barred=barred)) / 2
    return compared.weights.new_zeros(len(compared.numbers)).index_copy(0, compared.places(asks), losses * weights)


def triplet(compared: Compared, *, margin: float) -> Tensor:
    """The first sequence is to be nearer to the second one than to each further one, by a margin of cosine distance."""
    owners, further, counts = _further(compared)
    vectors = compared.vectors
    near = 1 - compared.similarities()
    far = 1 - functional.cosine_similarity(vectors[compared.firsts[owners]], vectors[further])
    return _means((near[owners] - far + margin).relu(), owners, counts, compared.weights)


def margin_mse(compared: Compared) -> Tensor:
    """The dot product with the second sequence is to be larger than those with further ones, by the sample's score."""
    owners, further, counts = _further(compared)
    vectors, firsts = compared.vectors, compared.firsts
    near = vectors[firsts].mul(vectors[compared.seconds]).sum(dim=-1)
    margins = near[owners] - vectors[firsts[owners]].mul(vectors[further]).sum(dim=-1)
    return _means((margins - compared.labels[owners]).square(), owners, counts, compared.weights)


def contrastive(compared: Compared, *, margin: float) -> Tensor:
    """Two sequences of score 1 are to be near, of score 0 a margin of cosine distance apart."""
    distances = 1 - compared.similarities()
    apart = (margin - distances).relu().square()
    losses = 0.5 * (compared.labels * distances.square() + (1 - compared.labels) * apart)
    return losses * compared.weights


def cosine_mse(compared: Compared) -> Tensor:
    """The cosine of two sequences is to be the score."""
    losses = (compared.similarities() - compared.labels).square()
    return losses * compared.weights


def cosent(compared: Compared, *, temperature: float) -> Tensor:
    """Of every two samples, that of the lower score is to have the lower cosine.

    It is one logarithm over all pairs of samples: each sample's loss is the whole one, so that their mean is.
    """
    scores, weights = compared.similarities() / temperature, compared.weights
    lower = compared.labels[:, None] < compared.labels
    pairs = (scores[:, None] - scores + (weights[:, None] * weights).log()).masked_fill(~lower, -torch.inf)
    whole = torch.cat([scores.new_zeros(1), pairs.flatten()]).logsumexp(dim=0)
    return whole * weights


def batch_hard_triplet(compared: Compared, *, margin: float) -> Tensor:
    """The farthest text of the same label is to be nearer than the nearest of another, by a margin of cosine distance.

    The loss of a sample without one of the two is 0.
    """
    vectors = functional.normalize(compared.vectors, dim=-1)
    distances = 1 - vectors @ vectors.T
    there = (compared.weights > 0)[None]
    alike = (compared.labels[:, None] == compared.labels) & there & (compared.ids[:, None] != compared.ids)
    unlike = (compared.labels[:, None] != compared.labels) & there
    asks = alike.any(dim=1) & unlike.any(dim=1)
    near = distances.masked_fill(~alike, -torch.inf).amax(dim=1)
    far = distances.masked_fill(~unlike, torch.inf).amin(dim=1)
    losses = torch.where(asks, (near - far + margin).relu(), 0.0)
    return losses * compared.weights


def of_sizes(loss: Loss, sizes: tuple[int, ...]) -> Loss:
    """The sum of a loss over vectors cut to each of the sizes; none = whole vectors alone."""
    if not sizes:
        return loss

    return lambda compared: torch.stack([loss(compared.cut_to(size)) for size in sizes]).sum(dim=0)


# ---------------------------------------------------------------- over the global batch


def compare_all(
    step: Step,
    context: Context,
    *,
    vectors_of: Callable[[nn.Module, Batch], Tensor],
    compared_of: Callable[[Batch, Tensor], Compared],
    loss: Loss,
) -> Step:
    """The first pass: vectors of all micro-batches of all ranks, and the gradient of the loss by them. Collective.

    `vectors_of`: (sequences, dim) of a batch; `compared_of`: the batch and its vectors as what is compared. What comes
    out is in each batch's `extra`, for `second_pass`. A step that is one micro-batch of one process stays as it is: it
    has all that is compared.
    """
    if len(step.micro_batches) == context.distributed.world_size == 1:
        return step
    batches = [batch.to(context.device) for batch, _ in step.micro_batches]
    own = [context.run(_on(vectors_of, batch), batch=batch) for batch in batches]
    parts = [compared_of(batch, vectors) for batch, vectors in zip(batches, own, strict=True)]
    real = [part for part, (_, counts) in zip(parts, step.micro_batches, strict=True) if counts]
    everything, sequences, samples = _gathered(real, parts[0], context)
    with torch.enable_grad():
        vectors = everything.vectors.detach().requires_grad_()
        losses = loss(replace(everything, vectors=vectors))
        (gradient,) = torch.autograd.grad(losses.sum(), vectors)
    gradient, losses = gradient[sequences], losses.detach()[samples]
    micro_batches, at, place = [], 0, 0
    for batch, part, (_, counts) in zip(batches, parts, step.micro_batches, strict=True):
        rows, count = len(part.ids), len(batch)
        found = (torch.zeros_like(part.vectors), losses.new_zeros(count))
        if counts:
            found = (gradient[at : at + rows], losses[place : place + count])
            at, place = at + rows, place + count
        by_sample = pad_sequence(found[0].split(list(part.numbers)), batch_first=True)
        extra = {**batch.extra, GRADIENT: by_sample, LOSSES: found[1]}
        micro_batches.append((replace(batch, extra=extra), counts))
    return replace(step, micro_batches=micro_batches)


def second_pass(batch: Batch, vectors: Tensor) -> Tensor:
    """The loss of a micro-batch behind `compare_all`: () float32, whose gradient is its part of the whole one's.

    vectors: (sequences, dim), with their graph.
    """
    backward = (pad_sequence(vectors.split(batch.sequences), batch_first=True) * batch.extra[GRADIENT]).sum()
    return batch.extra[LOSSES].sum() + backward - backward.detach()


def _on(work: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Callable[[nn.Module], Tensor]:
    return lambda model: work(model, batch)


def _gathered(real: list[Compared], any_part: Compared, context: Context) -> tuple[Compared, slice, slice]:
    """All ranks' parts as one, and the places of this rank's sequences and samples in it."""

    def gather(values: Callable[[Compared], Tensor]) -> tuple[Tensor, slice]:
        nothing = values(any_part)[:0]  # of a rank without samples
        return context.gather(torch.cat([nothing, *map(values, real)]))

    vectors, sequences = gather(lambda part: part.vectors)
    numbers, samples = gather(lambda part: part.places(part.numbers))
    others = [
        gather(values)[0]
        for values in (
            lambda part: part.ids,
            lambda part: part.labels,
            lambda part: part.weights,
            lambda part: part.keys,
        )
    ]
    return Compared(vectors, numbers.tolist(), *others), sequences, samples


# ---------------------------------------------------------------- parts


def _cross_entropy(own: Tensor, others: Tensor, *, barred: Tensor) -> Tensor:
    """(n,) of a right score and those that it is among: (n,) and (n, m), of which some do not count."""
    return torch.cat([own[:, None], others.masked_fill(barred, -torch.inf)], dim=1).logsumexp(dim=1) - own


def _barred(asked: Tensor, right: Tensor, ids: Tensor, *, there: Tensor, keys: Tensor) -> Tensor:
    """(n, m) bool: whether a text is no negative of what is asked in a row.

    It is that itself, or right for it by this row or another one, or stands there for the second time, or is not
    `there`: (m,) bool. keys: (m,) int64, of the samples of the texts.
    """
    same_asked, is_right = (asked[:, None] == asked).float(), (right[:, None] == ids).float()
    once = ids.where(there, 0)
    return (same_asked @ is_right > 0) | (asked[:, None] == ids) | (_repeated(once, keys) | ~there)


def _repeated(ids: Tensor, keys: Tensor) -> Tensor:
    """(n,) bool: whether the same stands before, in the order of the keys: with dropout each has another vector."""
    by_key = keys.argsort(stable=True)
    order = by_key[ids[by_key].argsort(stable=True)]
    same = functional.pad((ids[order[1:]] == ids[order[:-1]]).long(), (1, 0))
    return torch.zeros_like(ids).index_copy(0, order, same).bool()


def _further(compared: Compared) -> tuple[Tensor, Tensor, Tensor]:
    """The samples of all sequences behind their second ones, the places of these, and how many each sample has."""
    starts = accumulate(compared.numbers, initial=0)
    found = [
        (sample, start + place)
        for sample, (start, number) in enumerate(zip(starts, compared.numbers, strict=False))
        for place in range(2, number)
    ]
    counts = [max(number - 2, 0) for number in compared.numbers]
    return (
        compared.places([sample for sample, _ in found]),
        compared.places([place for _, place in found]),
        compared.places(counts),
    )


def _means(losses: Tensor, owners: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
    """Of each sample the mean of its losses, weighted; 0 where it has none."""
    sums = weights.new_zeros(len(counts)).index_add(0, owners, losses)
    return sums / counts.clamp(min=1) * weights
