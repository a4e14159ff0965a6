"""Accuracy, precision, recall, F1 and Matthews correlation, for one class a row and for several."""

from __future__ import annotations

from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Sequence as ListOf
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe

NAMES = ("precision", "recall", "f1")


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
        scores = _scores(truth, guess, present=np.union1d(truth, guess), labels=self.labels)
        averages = {name: value for name, value in scores.items() if "/" not in name}
        of_classes = {name: value for name, value in scores.items() if "/" in name}
        return {
            "accuracy": float(accuracy_score(truth, guess)),
            **averages,
            "mcc": float(matthews_corrcoef(truth, guess)),
            **of_classes,
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
            **_scores(truth, guess, present=present, labels=self.labels),
        }


def _scores(truth: np.ndarray, guess: np.ndarray, *, present: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """Macro and micro averages over the classes that are present, and the scores of each, from one look at the rows."""
    from sklearn.metrics import multilabel_confusion_matrix

    if not len(present):  # nothing true and nothing predicted: scikit-learn refuses an empty list of labels
        return {f"{name}_{average}": 0.0 for average in ("macro", "micro") for name in NAMES}
    counts = multilabel_confusion_matrix(truth, guess, labels=present)
    hits, predicted, true = counts[:, 1, 1], counts[:, :, 1].sum(axis=1), counts[:, 1, :].sum(axis=1)
    of_classes = _precision_recall_f1(hits, predicted, true)
    over_all = _precision_recall_f1(*(np.atleast_1d(values.sum()) for values in (hits, predicted, true)))
    return {
        **{f"{name}_macro": float(np.average(values)) for name, values in zip(NAMES, of_classes, strict=True)},
        **{f"{name}_micro": float(values[0]) for name, values in zip(NAMES, over_all, strict=True)},
        **{
            f"{name}/{labels[label]}": float(value)
            for name, values in zip(NAMES, of_classes, strict=True)
            for label, value in zip(present, values, strict=True)
        },
    }


def _precision_recall_f1(hits: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Each (classes,); 0 where it would be a division by zero."""
    pairs = ((hits, predicted), (hits, true), (2.0 * hits, true + predicted))
    return tuple(np.divide(above, below, out=np.zeros(len(hits)), where=below != 0) for above, below in pairs)
