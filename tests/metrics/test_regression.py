"""Correlations and errors of numbers."""

from __future__ import annotations

import warnings

import pytest

from ftscale.metrics.regression import RegressionScores


def test_scores_are_those_worked_out_by_hand():
    scores = RegressionScores().compute(predictions=[1.0, 2.0, 9.0], references=[1.0, 2.0, 3.0])
    assert scores["pearson"] == pytest.approx(8 / (2 * 38) ** 0.5)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["mse"] == pytest.approx(12.0)
    assert scores["mae"] == pytest.approx(2.0)


@pytest.mark.parametrize(("predictions", "references"), [([2.0, 2.0], [1.0, 3.0]), ([1.0, 3.0], [2.0, 2.0])])
def test_constant_numbers_have_no_correlation_and_no_warning(predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = RegressionScores().compute(predictions=predictions, references=references)
    assert scores["pearson"] == 0.0
    assert scores["spearman"] == 0.0
    assert scores["mse"] == pytest.approx(1.0)
