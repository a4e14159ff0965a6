"""Which evaluation is the best: by the metric's direction, and of equal ones by the loss."""

from __future__ import annotations

import logging
import math

import pytest

from ftscale.config.schema import EvaluationConfig
from ftscale.train.evaluations import Evaluations
from ftscale.train.state import Progress


def after(metric: str, *, higher: bool, scores: list[dict[str, float]]) -> Progress:
    """What the run knows when these evaluations are over, one a step."""
    progress = Progress()
    evaluations = Evaluations(EvaluationConfig(), frozenset(), None, metric, higher_is_better=higher)
    for progress.step, metrics in enumerate(scores, start=1):
        evaluations.judge(metrics, progress)
    return progress


def test_a_metric_that_stays_at_zero_leaves_the_choice_to_the_loss(caplog: pytest.LogCaptureFixture):
    scores = [{"bleu": 0.0, "loss": loss} for loss in (3.0, 2.0, 1.0, 1.5)]
    with caplog.at_level(logging.WARNING, logger="ftscale"):
        progress = after("bleu", higher=True, scores=scores)
    assert (progress.best_step, progress.best_metric, progress.best_metrics["loss"]) == (3, 0.0, 1.0)
    assert progress.bad_evaluations == 1  # patience counts from the third
    assert caplog.text.count("bleu has been 0 at every evaluation since the start") == 3


def test_a_metric_that_moves_chooses_whatever_the_loss_says(caplog: pytest.LogCaptureFixture):
    scores = [{"mae": 2.0, "loss": 1.0}, {"mae": 1.0, "loss": 9.0}, {"mae": 3.0, "loss": 0.1}]
    with caplog.at_level(logging.WARNING, logger="ftscale"):
        progress = after("mae", higher=False, scores=scores)
    assert (progress.best_step, progress.best_metric) == (2, 1.0)
    assert progress.metric_moved
    assert "at every evaluation" not in caplog.text


def test_a_class_in_no_row_and_no_prediction_is_no_better_and_no_end():
    scores = [{"loss": 1.0}, {"loss": 0.9, "f1/answer": 0.5}, {"loss": 0.8}]
    progress = after("f1/answer", higher=True, scores=scores)
    assert (progress.best_step, progress.best_metric) == (2, 0.5)


def test_values_that_are_not_finite_are_never_the_best():
    progress = after("loss", higher=False, scores=[{"loss": math.nan}, {"loss": math.inf}, {"loss": 4.0}])
    assert progress.best_step == 3
