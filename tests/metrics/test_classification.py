"""Scores of classes against values worked out by hand."""

from __future__ import annotations

import warnings

import pytest

from ftscale.metrics.classification import ClassificationScores, MultiLabelScores


def test_scores_of_three_classes_are_those_worked_out_by_hand():
    metric = ClassificationScores(("cat", "dog", "owl"))
    metric.add_batch(predictions=[0, 0, 1], references=[0, 1, 1])
    metric.add_batch(predictions=[2], references=[2])
    scores = metric.compute()
    assert scores["accuracy"] == 0.75
    assert scores["precision/cat"] == 0.5
    assert scores["recall/cat"] == 1.0
    assert scores["recall/dog"] == 0.5
    assert scores["f1/cat"] == pytest.approx(2 / 3)
    assert scores["f1/owl"] == 1.0
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert scores["f1_micro"] == pytest.approx(0.75)
    assert scores["mcc"] == pytest.approx(0.7)  # (3 * 4 - 5) / sqrt((16 - 6) * (16 - 6))


def test_a_class_that_does_not_occur_does_not_lower_the_macro_mean():
    scores = ClassificationScores(("a", "b", "never")).compute(predictions=[0, 1], references=[0, 1])
    assert scores["f1_macro"] == 1.0
    assert "f1/never" not in scores


def test_a_class_never_predicted_counts_zero_in_the_macro_mean():
    scores = ClassificationScores(("a", "b")).compute(predictions=[0, 0], references=[0, 1])
    assert scores["f1/b"] == 0.0
    assert scores["f1_macro"] == pytest.approx(1 / 3)


def test_constant_predictions_have_a_matthews_correlation_of_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = ClassificationScores(("a", "b")).compute(predictions=[1, 1, 1], references=[0, 1, 0])
    assert scores["mcc"] == 0.0


def test_sets_of_classes_are_scored_class_by_class_and_as_whole_rows():
    scores = MultiLabelScores(("a", "b", "c")).compute(
        predictions=[[1, 0, 0], [1, 1, 0], [0, 0, 0]], references=[[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    )
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["precision_micro"] == pytest.approx(2 / 3)
    assert scores["recall_micro"] == 1.0
    assert scores["f1/a"] == pytest.approx(2 / 3)
    assert scores["f1/b"] == 1.0
    assert scores["f1_macro"] == pytest.approx(5 / 6)
    assert "f1/c" not in scores


def test_rows_without_any_class_score_zero_and_do_not_fail():
    scores = MultiLabelScores(("a", "b")).compute(predictions=[[0, 0]], references=[[0, 0]])
    assert scores["accuracy"] == 1.0
    assert scores["f1_micro"] == 0.0
