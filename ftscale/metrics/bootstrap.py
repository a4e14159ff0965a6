"""How far scores might be from those of other rows of the same kind: intervals by resampling the rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 200
MOST_S = 10.0
"""Processor time that all resamples may take."""
LEAST_ROWS = 10
SHARE = 0.95

Interval = tuple[float, float]


def intervals(score: Callable[[Sequence[Any]], dict[str, float]], records: Sequence[Any]) -> dict[str, Interval]:
    """Return the percentile interval of each metric, which holds it for 95 of 100 samples of such rows.

    The rows are drawn anew with replacement, 200 times, by a fixed seed (B. Efron and R. Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 13). Scores of single classes (`f1/spam`) have none, nor has a metric that some
    resamples lack. Empty for fewer than 10 rows, and where scoring takes so long that the resamples would take more
    than 10 s of a processor.
    """
    if len(records) < LEAST_ROWS:
        return {}
    begun = time.process_time()
    names = [name for name in score(records) if "/" not in name]
    if (time.process_time() - begun) * RESAMPLES > MOST_S:
        return {}
    draw = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(RESAMPLES):
        values = score([records[row] for row in draw.integers(len(records), size=len(records))])
        for name in names:
            found[name].append(values.get(name, math.nan))
    edges = [(1 - SHARE) / 2, (1 + SHARE) / 2]
    return {
        name: tuple(np.quantile(values, edges).tolist()) for name, values in found.items() if np.isfinite(values).all()
    }
