"""ROUGE of generated texts, by rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import evaluate

from ftscale.metrics.memory import MemoryMetric, all_references, of_texts

NAMES = ("rouge1", "rouge2", "rougeL")


class Rouge(MemoryMetric):
    """`rouge1`, `rouge2`, `rougeL`: F-measures, 0 to 1, means over the rows; words in lower case, not stemmed.

    rouge-score's words are runs of a-z and 0-9 (Lin 2004): texts in other scripts have none and score 0.
    `predictions`: one plain text a row; `references`: one, or a list of one and more, of which each score takes the
    best.
    """

    def _info(self) -> evaluate.MetricInfo:
        return of_texts("ROUGE.")

    def _compute(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(NAMES))
        scores = [
            scorer.score_multi(given, prediction)
            for prediction, given in zip(predictions, all_references(references), strict=True)
        ]
        return {name: fmean(score[name].fmeasure for score in scores) for name in NAMES}
