"""Intervals of scores are those of statistics where there is a formula, and absent where they would mislead."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pytest

from ftscale.metrics import bootstrap
from ftscale.metrics.bootstrap import intervals


def mean(records: Sequence[float]) -> dict[str, float]:
    return {"accuracy": sum(records) / len(records), "f1/one": 0.5}


def test_a_share_has_the_interval_of_the_normal_approximation():
    records = [1.0] * 320 + [0.0] * 80
    found = intervals(mean, records)
    assert list(found) == ["accuracy"], "none of single classes"
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert found["accuracy"] == pytest.approx((0.8 - half, 0.8 + half), abs=0.012)
    assert intervals(mean, records) == found, "the same at every run"


def test_few_rows_have_none():
    assert intervals(mean, [1.0] * 9) == {}
    assert intervals(mean, [1.0] * 10) == {"accuracy": (1.0, 1.0)}


def test_a_metric_that_some_resamples_lack_has_none():
    def score(records: Sequence[float]) -> dict[str, float]:
        return {**mean(records), **({"recall": 1.0} if len(set(records)) == 20 else {}), "mcc": math.nan}

    assert list(intervals(score, list(range(20)))) == ["accuracy"]


def test_scores_that_take_too_long_have_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "MOST_S", 1.0)

    def score(records: Sequence[float]) -> dict[str, float]:
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass
        return mean(records)

    assert intervals(score, [1.0] * 20) == {}
