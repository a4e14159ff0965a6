"""ROUGE."""

from __future__ import annotations

import pytest

from ftscale.metrics.rouge import Rouge


def test_scores_are_the_f_measures_of_shared_words_pairs_and_subsequences():
    scores = Rouge().compute(predictions=["the cat sat on a mat"], references=["the cat lay on the mat"])
    # words shared: the, cat, on, mat = 4 of 6 and 6; pairs: "the cat" = 1 of 5 and 5; subsequence: the cat on mat = 4
    assert scores == pytest.approx({"rouge1": 4 / 6, "rouge2": 1 / 5, "rougeL": 4 / 6})


def test_precision_and_recall_both_count_and_order_counts_for_the_subsequence():
    scores = Rouge().compute(predictions=["b a"], references=["a b c"])
    precision, recall = 1.0, 2 / 3
    f_measure = 2 * precision * recall / (precision + recall)
    assert scores == pytest.approx(
        {"rouge1": f_measure, "rouge2": 0.0, "rougeL": 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)}
    )


def test_the_score_is_the_mean_over_rows_without_case():
    scores = Rouge().compute(predictions=["A dog", "x"], references=["a dog", "y"])
    assert scores == pytest.approx({"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5})
