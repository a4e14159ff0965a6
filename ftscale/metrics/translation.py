"""BLEU and chrF of generated texts, by sacreBLEU, with the signatures that make scores comparable."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import evaluate

from ftscale.metrics.memory import MemoryMetric, all_references, of_texts


class TranslationScores(MemoryMetric):
    """`bleu` and `chrf` of a corpus, 0 to 100, with sacreBLEU's defaults (13a tokenisation, chrF2).

    `predictions`: one plain text a row; `references`: one, or a list of one and more, of which both scores take the
    best matches as sacreBLEU does.
    """

    signatures: dict[str, str]
    """sacreBLEU's signature of each score, as publications quote it; set by `compute`."""

    def __init__(self) -> None:
        self.signatures = {}
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        return of_texts("BLEU and chrF.")

    def _compute(self, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
        from sacrebleu.metrics import BLEU, CHRF

        streams = [list(texts) for texts in zip_longest(*all_references(references))]  # None where a row has fewer
        scores = {}
        for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
            scores[name] = float(metric.corpus_score(list(predictions), streams).score)
            self.signatures[name] = str(metric.get_signature())
        return scores
