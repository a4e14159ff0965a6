"""Scores of the order in which texts stand behind a query.

Source: recall, MRR, NDCG and MAP as BEIR (Thakur et al. 2021, arXiv:2104.08663) and trec_eval have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftscale.tasks.batch import Columns

CUT = 10
DEEPEST = 100


def scores_of_ranks(gains: Sequence[float], ideal: Sequence[float]) -> dict[str, float]:
    """Of one query: gains of the texts that were found, best first, and of all that are right, largest first."""
    row = np.asarray(gains[:DEEPEST], dtype=np.float64)
    discounts = 1 / np.log2(np.arange(2, CUT + 2))
    hits, number = row > 0, max(len(ideal), 1)
    first = int(hits[:CUT].argmax()) if hits[:CUT].any() else None
    precisions = hits.cumsum() / np.arange(1, len(row) + 1)
    most = float(np.dot(ideal[:CUT], discounts[: len(ideal)]))
    return {
        "recall@1": float(hits[0]) / number,
        f"recall@{CUT}": float(hits[:CUT].sum()) / number,
        f"mrr@{CUT}": 0.0 if first is None else 1 / (first + 1),
        f"ndcg@{CUT}": float(np.dot(row[:CUT], discounts[: len(row)])) / most if most else 0.0,
        f"map@{DEEPEST}": float((precisions * hits).sum()) / min(number, DEEPEST),
    }


@dataclass(frozen=True)
class Ranked:
    """A query with some of its texts, as a model scored them."""

    query: int
    """The same for the same query."""
    texts: tuple[int, ...]
    scores: tuple[float, ...]
    right: tuple[float, ...]
    """How right each text is; 0 = not at all."""
    loss: float
    """The sum over its targets."""
    targets: int


@dataclass(frozen=True)
class RankedList:
    """What came out for a query over all of its rows."""

    loss: float
    targets: int
    ranks: dict[str, float]


def ranked(records: Sequence[Ranked]) -> list[RankedList]:
    """One entry a query: the texts of all its rows in one order, each once."""
    queries: dict[int, list[Ranked]] = {}
    for record in records:
        queries.setdefault(record.query, []).append(record)
    return [_of_query(rows) for rows in queries.values()]


def firsts_of_queries(records: Sequence[Ranked]) -> list[int]:
    """The place of the first row of each query, in the order of `ranked`."""
    firsts: dict[int, int] = {}
    for place, record in enumerate(records):
        firsts.setdefault(record.query, place)
    return list(firsts.values())


def columns_of_lists(found: Sequence[RankedList]) -> Columns:
    """The mean loss of each query's targets, None where it has none, and its scores."""
    ranks: Columns = {name: [one.ranks[name] for one in found] for name in found[0].ranks}
    losses = [one.loss / one.targets if one.targets else None for one in found]
    return {"loss": losses, "targets": [one.targets for one in found], **ranks}


def scores_of_lists(found: Sequence[RankedList]) -> dict[str, float]:
    """The mean loss of a target, and the means over queries."""
    targets = sum(one.targets for one in found)
    scores = {"loss": sum(one.loss for one in found) / targets if targets else float("nan")}
    return scores | {name: float(np.mean([one.ranks[name] for one in found])) for name in found[0].ranks}


def _of_query(rows: Sequence[Ranked]) -> RankedList:
    scores: dict[int, float] = {}
    right: dict[int, float] = {}
    for row in rows:
        for text, score, value in zip(row.texts, row.scores, row.right, strict=True):
            scores[text] = score
            right[text] = max(value, right.get(text, 0.0))
    order = sorted(scores, key=lambda text: -scores[text])
    ideal = sorted((value for value in right.values() if value > 0), reverse=True)
    ranks = scores_of_ranks([right[text] for text in order], ideal)
    return RankedList(sum(row.loss for row in rows), sum(row.targets for row in rows), ranks)
