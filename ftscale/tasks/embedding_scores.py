"""Scores of vectors: whether what belongs to a text is found among all others, and whether cosines follow scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ftscale.metrics.regression import RegressionScores
from ftscale.tasks.batch import Columns
from ftscale.tasks.embedding_losses import Compared, Loss
from ftscale.tasks.ranking_scores import CUT, DEEPEST, scores_of_ranks

Kind = Literal["documents", "pairs", "classes"]
BLOCK = 4096
"""Rows that the loss of an evaluation is taken over together."""
AT_ONCE = 2**26
"""Cosines that are in memory at a time, of some queries with all texts."""


@dataclass(frozen=True)
class Record:
    """What evaluation keeps of a sample."""

    ids: np.ndarray
    """(sequences,) int64: the same for the same text."""
    vectors: np.ndarray
    """(sequences, dim) float32."""
    label: float | int
    """The score, or a number of the label."""


@dataclass(frozen=True)
class Found:
    """What came out for a text that something is looked for, or for a pair."""

    loss: float
    ranks: dict[str, float] = field(default_factory=dict)
    """Scores of this text by their names."""
    cosine: float | None = None
    """Of a pair, with what was to come out."""
    score: float = 0.0

    @classmethod
    def made_up(cls, kind: Kind) -> Found:
        """One that has all scores of a kind."""
        if kind == "pairs":
            return cls(0.0, cosine=0.0)
        return cls(0.0, _of_classes(np.ones((1, 1)))[0] if kind == "classes" else scores_of_ranks([1.0], [1.0]))


def records_of(outputs: dict[str, Any], ids: Tensor, labels: Tensor, numbers: Sequence[int]) -> list[Record]:
    """One record a sample. ids: (samples, most sequences) int64; `vectors` of the outputs: (sequences, dim) float32."""
    vectors = outputs["vectors"].cpu().split(list(numbers))
    return [
        Record(row[:number].numpy(), of_sample.numpy(), label)
        for row, of_sample, label, number in zip(ids.cpu(), vectors, labels.tolist(), numbers, strict=True)
    ]


def found_of(records: Sequence[Record], *, kind: Kind, loss: Loss) -> list[Found]:
    """One entry a row, or a distinct text that others are looked for."""
    losses = torch.cat([_losses(records[at : at + BLOCK], loss) for at in range(0, len(records), BLOCK)]).tolist()
    if kind == "pairs":
        pairs = torch.from_numpy(np.stack([record.vectors for record in records]))
        cosines = functional.cosine_similarity(pairs[:, 0], pairs[:, 1]).tolist()
        return [
            Found(of_row, cosine=cosine, score=record.label)
            for of_row, cosine, record in zip(losses, cosines, records, strict=True)
        ]
    if kind == "classes":
        return [Found(*both) for both in zip(losses, _nearest_labels(records), strict=True)]
    return _retrieved(records, losses)


def firsts_of(records: Sequence[Record], *, kind: Kind) -> Sequence[int]:
    """The place of the record that each entry of `found_of` begins with."""
    if kind != "documents":
        return range(len(records))
    firsts: dict[int, int] = {}
    for place, record in enumerate(records):
        if len(record.ids) > 1:
            firsts.setdefault(int(record.ids[0]), place)
    return list(firsts.values())


def columns_of(found: Sequence[Found]) -> Columns:
    """The loss, and the scores of a text that others are looked for, or the cosine of a pair beside its score."""
    columns: Columns = {"loss": [one.loss for one in found]}
    if found[0].cosine is None:
        return columns | {name: [one.ranks[name] for one in found] for name in found[0].ranks}
    return {**columns, "prediction": [one.cosine for one in found], "label": [one.score for one in found]}


def scores_of(found: Sequence[Found]) -> dict[str, float]:
    """Means, and for pairs the correlations of cosines with scores."""
    scores = {"loss": float(np.mean([one.loss for one in found]))}
    if found[0].cosine is None:
        return scores | {name: float(np.mean([one.ranks[name] for one in found])) for name in found[0].ranks}
    correlations = RegressionScores().compute(
        predictions=[one.cosine for one in found], references=[one.score for one in found]
    )
    return scores | {name: correlations[name] for name in ("spearman", "pearson")}


def _losses(records: Sequence[Record], loss: Loss) -> Tensor:
    vectors = torch.from_numpy(np.concatenate([record.vectors for record in records]))
    ids = torch.from_numpy(np.concatenate([record.ids for record in records]))
    numbers = [len(record.ids) for record in records]
    labels = torch.tensor([record.label for record in records])
    return loss(Compared(vectors, numbers, ids, labels, torch.ones(len(records)), torch.arange(len(records))))


# ---------------------------------------------------------------- texts that are looked for


def _retrieved(records: Sequence[Record], losses: Sequence[float]) -> list[Found]:
    """One entry a distinct first text of those that have a second one; its loss is the mean of its rows'."""
    documents, asked = _Texts(), _Texts()
    right: list[dict[int, float]] = []
    of_query: list[list[float]] = []
    for record, of_row in zip(records, losses, strict=True):
        first = 0 if len(record.ids) == 1 else 1
        places = [documents.place(*text) for text in zip(record.ids[first:], record.vectors[first:], strict=True)]
        if first:
            query = asked.place(record.ids[0], record.vectors[0])
            if query == len(right):
                right.append({})
                of_query.append([])
            of_query[query].append(of_row)
            if record.label > 0:
                right[query][places[0]] = float(record.label)
    ranks = _ranks(asked, documents, right)
    return [Found(float(np.mean(of_rows)), of_text) for of_rows, of_text in zip(of_query, ranks, strict=True)]


class _Texts:
    """Distinct texts, numbered as they come."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self._vectors: list[np.ndarray] = []

    def place(self, number: int, vector: np.ndarray) -> int:
        place = self.numbers.setdefault(int(number), len(self._vectors))
        if place == len(self._vectors):
            self._vectors.append(vector)
        return place

    def unit_vectors(self) -> Tensor:
        """(texts, dim) float32, of length 1."""
        return functional.normalize(torch.from_numpy(np.stack(self._vectors)), dim=-1)


def _ranks(asked: _Texts, documents: _Texts, right: Sequence[dict[int, float]]) -> list[dict[str, float]]:
    """Scores of each text that is asked for, its own text left out of what is found."""
    queries, others, found = asked.unit_vectors(), documents.unit_vectors(), []
    itself = [documents.numbers.get(number) for number in asked.numbers]
    size = max(AT_ONCE // len(others), 1)
    for start in range(0, len(queries), size):
        near = queries[start : start + size] @ others.T
        for row, place in enumerate(itself[start : start + size]):
            if place is not None and place not in right[start + row]:
                near[row, place] = -torch.inf
        ranking = near.topk(min(DEEPEST, near.shape[1])).indices.tolist()
        for places, of_text in zip(ranking, right[start : start + size], strict=True):
            gains = [of_text.get(place, 0.0) for place in places]
            found.append(scores_of_ranks(gains, sorted(of_text.values(), reverse=True)))
    return found


# ---------------------------------------------------------------- texts with labels


def _nearest_labels(records: Sequence[Record]) -> list[dict[str, float]]:
    """Whether the nearest other row, or one of the ten nearest, has the row's label."""
    vectors = functional.normalize(torch.from_numpy(np.stack([record.vectors[0] for record in records])), dim=-1)
    labels, found = torch.tensor([record.label for record in records]), []
    size = max(AT_ONCE // len(vectors), 1)
    for start in range(0, len(vectors), size):
        near = vectors[start : start + size] @ vectors.T
        rows = torch.arange(len(near))
        near[rows, start + rows] = -torch.inf
        nearest = near.topk(min(CUT, max(len(vectors) - 1, 1))).indices
        found += _of_classes((labels[nearest] == labels[start + rows][:, None]).numpy())
    return found


def _of_classes(right: np.ndarray) -> list[dict[str, float]]:
    """right: (rows, nearest), whether each has the label."""
    return [{"recall@1": float(row[0]), f"recall@{CUT}": float(row.any())} for row in right]
