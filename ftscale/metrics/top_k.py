"""Top-k accuracy of ranked classes."""

from __future__ import annotations

from collections.abc import Sequence

import evaluate
from datasets import Sequence as ListOf
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe


class TopKAccuracy(MemoryMetric):
    """`top<k>_accuracy`: the share of rows whose class is among the k best.

    `predictions`: for each row its class ids, best first (no more than k are looked at); `references`: one class id a
    row. The ids rather than all scores, so that a thousand classes cost k numbers a row.
    """

    def __init__(self, k: int = 5) -> None:
        self.k = k
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        return describe("Top-k accuracy.", predictions=ListOf(Value("int64")), references=Value("int64"))

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[int]) -> dict[str, float]:
        hits = [truth in best[: self.k] for best, truth in zip(predictions, references, strict=True)]
        return {f"top{self.k}_accuracy": sum(hits) / len(hits)}
