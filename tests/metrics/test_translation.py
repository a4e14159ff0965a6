"""BLEU and chrF."""

from __future__ import annotations

import math

import pytest

from ftscale.metrics.translation import TranslationScores


def test_equal_texts_score_one_hundred_and_bleu_is_of_the_corpus_not_a_mean_of_rows():
    text = "A man in an orange hat starring at something ."
    assert TranslationScores().compute(predictions=[text], references=[text]) == pytest.approx(
        {"bleu": 100.0, "chrf": 100.0}
    )
    scores = TranslationScores().compute(predictions=[text, "no"], references=[text, "a dog runs"])
    # 10 of 11 words, 9 of 9, 8 of 8 and 7 of 7 longer n-grams; 11 words against 13 of the references
    assert scores["bleu"] == pytest.approx(100 * (10 / 11) ** 0.25 * math.exp(1 - 13 / 11))


def test_the_signature_tells_how_the_score_was_made():
    metric = TranslationScores()
    metric.compute(predictions=["a dog"], references=["a dog"])
    assert "tok:13a" in metric.signatures["bleu"]
    assert "nrefs:1" in metric.signatures["bleu"]
    assert "nc:6|nw:0" in metric.signatures["chrf"]
