"""Exact match of generated texts, or of the answers that a pattern finds in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import evaluate
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe


class ExactMatch(MemoryMetric):
    """`exact_match`: share of rows, 0 to 1, whose prediction equals the reference, white space around both aside.

    `predictions`, `references`: one plain text a row. `compute(..., pattern=r"#### (.+)")` compares the `answer`s
    instead; a text without one is wrong.
    """

    def _info(self) -> evaluate.MetricInfo:
        return describe("Exact match.", predictions=Value("string"), references=Value("string"))

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], pattern: str | None = None
    ) -> dict[str, float]:
        pairs = [
            (answer(prediction, pattern), answer(reference, pattern))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return {"exact_match": sum(found is not None and found == wanted for found, wanted in pairs) / len(pairs)}


def answer(text: str, pattern: str | None) -> str | None:
    """What is compared of a text: the first group of the last match of `pattern`; None where nothing matches.

    That is the whole match where the pattern has no group, and the whole text where `pattern` is None.
    """
    if pattern is None:
        return text.strip()
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    found = matches[-1][1 if matches[-1].re.groups else 0]
    return None if found is None else found.strip()
