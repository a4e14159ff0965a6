"""Text classification: one class, several classes or a number, for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ftscale.config.schema import TextClassificationSettings
from ftscale.errors import UserError
from ftscale.metrics.classification import ClassificationScores, MultiLabelScores
from ftscale.metrics.regression import RegressionScores
from ftscale.tasks import columns_of
from ftscale.tasks.base import Batch, Evaluator, Layout, Outputs, Row, Sample, model_inputs
from ftscale.tasks.collate import collate_tokens, pad_id
from ftscale.tasks.encode import Encoded, encode, length_limit, overlong_note
from ftscale.tasks.labels import (
    best_classes,
    bit_of,
    class_id,
    class_items,
    class_name,
    class_numbers,
    is_vector,
    label_settings,
    sorted_names,
    vector_of,
)
from ftscale.tasks.rows import number_of, text_of, where

BEST = {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "pearson"}


class TextClassification:
    """The task of `task: text_classification`.

    Labels of a batch: (samples,) int64 for one class, (samples, classes) float32 of 0 and 1 for several, (samples,)
    float32 for a number. A row is one target; with several classes its loss is the mean over the classes.
    """

    auto_class = "AutoModelForSequenceClassification"
    processor_class = "tokenizer"

    def __init__(self, settings: TextClassificationSettings) -> None:
        self.settings = settings
        self.columns = columns_of(settings)
        self.optional = ("label",) if settings.problem == "multi_label" else ()  # a row may have none of the classes
        self.ids = class_numbers(settings)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the class names in the order of their ids, from the settings or from what `fit` learned."""
        assert self.settings.labels is not None, "the training rows tell the labels: fit first"
        return self.settings.labels

    @property
    def best_metric(self) -> tuple[str, bool]:
        """Choose checkpoints by the metric that `BEST` has for the problem; higher is better for each."""
        return BEST[self.settings.problem], True

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Class names. Raises UserError for rows without a class, and where there are fewer than two classes."""
        if self.settings.problem == "regression" or self.settings.labels is not None:
            return {}
        labels = sorted_names(self._several(rows) if self.settings.problem == "multi_label" else _single(rows))
        if len(labels) < (2 if self.settings.problem == "single_label" else 1):
            raise UserError(
                f"data.train has the classes {list(labels)}: too few to learn from; look at the label column, or name "
                "all classes in task.labels."
            )
        return {"labels": labels}

    def model_settings(self) -> dict[str, Any]:
        """Name the classes and the kind of problem in the model's config; a number needs one output."""
        if self.settings.problem == "regression":
            return {"num_labels": 1, "problem_type": "regression"}
        return {**label_settings(self.labels), "problem_type": f"{self.settings.problem}_classification"}

    def prepare(self, rows: Sequence[Row], processor: Any, *, labelled: bool = True) -> list[Sample]:
        """Tokenise each row's text, or pair of texts, and add its class, its classes' ids or its number."""
        limit = length_limit(self.settings.max_length, processor)
        texts = [text_of(row, "text") for row in rows]
        pairs = [text_of(row, "text_pair") for row in rows] if any("text_pair" in row for row in rows) else None
        encoded = encode(processor, texts, pairs=pairs, limit=limit)
        return [self._sample(row, item, limit, labelled) for row, item in zip(rows, encoded, strict=True)]

    def collator(self, processor: Any, *, layout: Layout, train: bool) -> Callable[[Sequence[Sample]], Batch]:
        """Return a collator of tokens; labels become what `problem` asks for, a vector for several classes."""
        return partial(self._collate, fill={"input_ids": pad_id(processor), "token_type_ids": 0}, layout=layout)

    def count(self, batch: Batch) -> torch.Tensor:
        """Count the rows, each of which is one target however many classes it has: () int64."""
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum the rows' losses: cross-entropy, its binary form or the squared error, by `problem`: () float32."""
        logits = model(**model_inputs(batch)).logits
        return self._losses(logits.float(), batch["labels"]).sum()

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch, processor: Any) -> Outputs:
        """`logits`: (samples, classes) float32; with labels also `losses`: (samples,), and `loss`, their sum."""
        logits = model(**model_inputs(batch)).logits.float()
        if "labels" not in batch:
            return {"logits": logits}
        losses = self._losses(logits, batch["labels"])
        return {"logits": logits, "losses": losses, "loss": losses.sum()}

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the loss and of the scores that suit `problem`."""
        return Evaluator(self._records, self._score)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring records made up for all classes."""
        if self.settings.problem == "regression":
            return list(self._score([(0.0, 0.0, 0.0), (0.0, 1.0, 1.0)]))
        numbers = range(len(self.labels))
        if self.settings.problem == "multi_label":
            return list(self._score([(0.0, [1 for _ in numbers], [1 for _ in numbers])]))
        return list(self._score([(0.0, number, number) for number in numbers]))

    def predictions(
        self, outputs: Outputs, batch: Batch, processor: Any, *, every: bool = False
    ) -> list[dict[str, Any]]:
        """The class and its probability; the list of classes and of their probabilities; or the number, no score."""
        logits = outputs["logits"]
        if self.settings.problem == "regression":
            return [{"prediction": value, "score": None} for value in logits[:, 0].tolist()]
        if self.settings.problem == "multi_label":
            return [self._chosen(row, every=every) for row in logits.sigmoid().tolist()]
        return best_classes(logits, self.labels, every=every)

    def _several(self, rows: Iterable[Row]) -> Iterator[str]:
        """The classes of rows that may have several. Raises UserError where all of them are vectors of one length."""
        lengths, last = set(), {}
        for row in rows:
            items = self._items(row)
            if items:
                lengths.add(len(items) if is_vector(items) else 0)
                last = row
            yield from items
        if len(lengths) == 1 and 0 not in lengths:
            raise UserError(
                f"{where(last)}: label = {last['label']!r} is, as in all rows, a vector of {lengths.pop()} zeros and "
                "ones; name their classes in task.labels, in this order."
            )

    def _items(self, row: Row) -> list[str]:
        return class_items(row, "label", separator=self.settings.label_separator)

    def _sample(self, row: Row, encoded: Encoded, limit: int, labelled: bool) -> Sample:
        sample: Sample = {
            **encoded.inputs,
            "length": len(encoded.inputs["input_ids"]),
            "targets": int(labelled),
            "note": overlong_note(encoded.length, row, limit=limit, too_long=self.settings.too_long),
        }
        if labelled:
            sample["labels"] = self._label(row)
        return sample

    def _label(self, row: Row) -> int | float | list[int]:
        if self.settings.problem == "regression":
            return number_of(row, "label")
        if self.settings.problem == "single_label":
            return class_id(row, "label", class_name(row, "label"), labels=self.labels, ids=self.ids)
        if "label" not in row:  # a column a class
            return [number for number, label in enumerate(self.labels) if bit_of(row, label)]
        items = self._items(row)
        vector = vector_of(row, "label", items, labels=self.labels)
        if vector is not None:
            return vector
        return sorted({class_id(row, "label", item, labels=self.labels, ids=self.ids) for item in items})

    def _collate(self, samples: Sequence[Sample], *, fill: dict[str, int], layout: Layout) -> Batch:
        batch = collate_tokens(samples, fill=fill, layout=layout)
        if "labels" in samples[0]:
            batch["labels"] = self._stack([sample["labels"] for sample in samples])
        return batch

    def _stack(self, labels: Sequence[Any]) -> torch.Tensor:
        if self.settings.problem == "single_label":
            return torch.tensor(labels)
        if self.settings.problem == "regression":
            return torch.tensor(labels, dtype=torch.float32)
        chosen = torch.zeros(len(labels), len(self.labels))
        for row, ids in enumerate(labels):
            chosen[row, ids] = 1.0
        return chosen

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.settings.problem == "regression":
            return functional.mse_loss(logits[:, 0], labels, reduction="none")
        if self.settings.problem == "multi_label":
            return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)
        return functional.cross_entropy(logits, labels, reduction="none")

    def _records(self, outputs: Outputs, batch: Batch) -> list[tuple[float, Any, Any]]:
        logits, labels = outputs["logits"], batch["labels"]
        if self.settings.problem == "regression":
            guesses = logits[:, 0]
        elif self.settings.problem == "multi_label":
            guesses, labels = (logits > 0).int(), labels.int()
        else:
            guesses = logits.argmax(dim=-1)
        return list(zip(outputs["losses"].tolist(), guesses.tolist(), labels.tolist(), strict=True))

    def _score(self, records: Sequence[tuple[float, Any, Any]]) -> dict[str, float]:
        losses, guesses, truth = zip(*records, strict=True)
        scores = self._metric().compute(predictions=list(guesses), references=list(truth))
        return {"loss": sum(losses) / len(losses), **scores}

    def _metric(self) -> ClassificationScores | MultiLabelScores | RegressionScores:
        if self.settings.problem == "regression":
            return RegressionScores()
        metric = MultiLabelScores if self.settings.problem == "multi_label" else ClassificationScores
        return metric(self.labels)

    def _chosen(self, probabilities: Sequence[float], *, every: bool) -> dict[str, Any]:
        chosen = [(label, value) for label, value in zip(self.labels, probabilities, strict=True) if value > 0.5]
        answer = {"prediction": [label for label, _ in chosen], "score": [value for _, value in chosen]}
        return {**answer, "scores": dict(zip(self.labels, probabilities, strict=True))} if every else answer


def _single(rows: Iterable[Row]) -> Iterator[str]:
    return (class_name(row, "label") for row in rows)
