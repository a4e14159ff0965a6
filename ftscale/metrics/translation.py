"""BLEU and chrF of generated texts, by sacreBLEU, with the signatures that make scores comparable."""

from __future__ import annotations

from collections.abc import Sequence

import evaluate
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe


class TranslationScores(MemoryMetric):
    """`bleu` and `chrf` of a corpus, 0 to 100, with sacreBLEU's defaults (13a tokenisation, chrF2).

    `predictions`, `references`: one plain text a row.
    """

    signatures: dict[str, str]
    """sacreBLEU's signature of each score, as publications quote it; set by `compute`."""

    def __init__(self) -> None:
        self.signatures = {}
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        return describe("BLEU and chrF.", predictions=Value("string"), references=Value("string"))

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        from sacrebleu.metrics import BLEU, CHRF

        scores = {}
        for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
            scores[name] = float(metric.corpus_score(list(predictions), [list(references)]).score)
            self.signatures[name] = str(metric.get_signature())
        return scores
