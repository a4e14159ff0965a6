"""Pearson and Spearman correlation, and errors, of predicted numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe


class RegressionScores(MemoryMetric):
    """`pearson` and `spearman` (scipy), `mse` and `mae` of numbers.

    A correlation is not defined where all predictions or all references are one number; it is then 0.0, since nothing
    is explained, and no warning is given.
    """

    def _info(self) -> evaluate.MetricInfo:
        return describe("Scores of numbers.", predictions=Value("float64"), references=Value("float64"))

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr

        truth, guess = np.asarray(references, dtype=float), np.asarray(predictions, dtype=float)
        return {
            "pearson": _correlation(pearsonr, truth, guess),
            "spearman": _correlation(spearmanr, truth, guess),
            "mse": float(np.mean((truth - guess) ** 2)),
            "mae": float(np.mean(np.abs(truth - guess))),
        }


def _correlation(function: Callable[..., Any], truth: np.ndarray, guess: np.ndarray) -> float:
    if np.ptp(truth) == 0 or np.ptp(guess) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant input: the value stands, only less exactly
        return float(function(truth, guess).statistic)
