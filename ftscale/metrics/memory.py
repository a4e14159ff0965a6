"""The base of all metrics here: an `evaluate.Metric` that leaves nothing on disk."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory

import evaluate
from datasets import Features, List, Value


class MemoryMetric(evaluate.Metric):
    """An `evaluate.Metric` that is made without arguments of the library and keeps its inputs in memory.

    `evaluate.Metric` writes Arrow files and locks into one folder of the user, so that two processes which compute at
    once can take each other's files; and it makes that folder even where it will not be written. In memory there is
    no file to share, and the folder is gone when the constructor returns.
    A subclass gives `_info` (by `describe`) and `_compute`.
    """

    def __init__(self) -> None:
        with TemporaryDirectory() as folder:
            super().__init__(keep_in_memory=True, cache_dir=folder)


def of_texts(description: str) -> evaluate.MetricInfo:
    """What `evaluate` asks of a metric of texts, whose references are a text a row, or a list of texts a row."""
    info = describe(description, predictions=Value("string"), references=Value("string"))
    several = Features({"predictions": Value("string"), "references": List(Value("string"))})
    info.features = [info.features, several]
    return info


def all_references(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Return the references of each row as a list."""
    return [[given] if isinstance(given, str) else list(given) for given in references]


def describe(description: str, *, predictions: object, references: object) -> evaluate.MetricInfo:
    """What `evaluate` asks of a metric; `predictions` and `references` are features of `datasets`."""
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description="",
        features=Features({"predictions": predictions, "references": references}),
    )
