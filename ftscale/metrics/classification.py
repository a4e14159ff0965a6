"""Accuracy, precision, recall, F1 and Matthews correlation, for one class a row and for several."""

from __future__ import annotations

from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Sequence as ListOf
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe


class ClassificationScores(MemoryMetric):
    """Scores of class ids, by scikit-learn.

    `predictions`, `references`: one class id a row. Gives `accuracy`, `precision_macro`, `recall_macro`, `f1_macro`,
    the same with `_micro`, `mcc`, and `precision/<label>`, `recall/<label>`, `f1/<label>`.
    A class that neither predictions nor references hold is left out of the macro means and has no entry of its own.
    What would divide by zero is 0.0: the precision of a class never predicted, the recall of one that never occurs,
    and `mcc` where all predictions, or all references, are one class.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        return describe("Scores of class ids.", predictions=Value("int64"), references=Value("int64"))

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, matthews_corrcoef

        truth, guess = np.asarray(references), np.asarray(predictions)
        present = np.union1d(truth, guess)
        return {
            "accuracy": float(accuracy_score(truth, guess)),
            **_averages(truth, guess, present=present),
            "mcc": float(matthews_corrcoef(truth, guess)),
            **_per_class(truth, guess, present=present, labels=self.labels),
        }


class MultiLabelScores(MemoryMetric):
    """Scores of sets of classes, by scikit-learn.

    `predictions`, `references`: for each row 0 or 1 for each class. Names and conventions are those of
    `ClassificationScores`, without `mcc`; `accuracy` is the share of rows whose whole set is right.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        rows = ListOf(Value("int8"))
        return describe("Scores of sets of classes.", predictions=rows, references=rows)

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> dict[str, float]:
        truth, guess = np.asarray(references), np.asarray(predictions)
        present = np.flatnonzero((truth | guess).any(axis=0))
        return {
            "accuracy": float((truth == guess).all(axis=1).mean()),
            **_averages(truth, guess, present=present),
            **_per_class(truth, guess, present=present, labels=self.labels),
        }


def _averages(truth: np.ndarray, guess: np.ndarray, *, present: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support

    scores = {}
    for average in ("macro", "micro"):
        values = (0.0, 0.0, 0.0)  # nothing true and nothing predicted: scikit-learn refuses an empty list of labels
        if len(present):
            values = precision_recall_fscore_support(truth, guess, labels=present, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            scores[f"{name}_{average}"] = float(value)
    return scores


def _per_class(truth: np.ndarray, guess: np.ndarray, *, present: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    from sklearn.metrics import precision_recall_fscore_support

    if not len(present):
        return {}
    columns = precision_recall_fscore_support(truth, guess, labels=present, average=None, zero_division=0)
    return {
        f"{name}/{labels[label]}": float(value)
        for name, column in zip(("precision", "recall", "f1"), columns, strict=False)
        for label, value in zip(present, column, strict=True)
    }
