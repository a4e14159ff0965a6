"""Text classification: one class, several classes or a number, for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.text_classification import TextClassificationSettings
from ftscale.data.sample import Sample
from ftscale.metrics.classification import ClassificationScores, MultiLabelScores
from ftscale.metrics.regression import RegressionScores
from ftscale.modalities.collate import Layout, collate_tokens, pad_id
from ftscale.modalities.encode import Encoded, encode, length_limit
from ftscale.modalities.text import Text
from ftscale.tasks.base import Answer, Evaluator, Row, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
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
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import number_of, text_of, where
from ftscale.tasks.states import mean_of_tokens, states_below_head
from ftscale.tasks.text_fit import text_problems

BEST = {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "pearson"}


Record = tuple[float, Any, Any, float | None]
"""What evaluation keeps of a sample: its loss, the guess, the truth, and how likely the guess is."""


class TextClassification(Task):
    """The task of `task: text_classification`.

    Labels of a batch: (samples,) int64 for one class, (samples, classes) float32 of 0 and 1 for several, (samples,)
    float32 for a number. A row is one target; with several classes its loss is the mean over the classes.
    """

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    peft_type = "SEQ_CLS"
    modality = Text()
    pools = True
    settings: TextClassificationSettings

    def __init__(self, settings: TextClassificationSettings, processor: Any = None) -> None:
        super().__init__(settings, processor)
        self.ids = class_numbers(settings)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers."""
        assert self.settings.labels is not None, "the training rows tell the labels: fit first"
        return self.settings.labels

    @property
    def best_metric(self) -> str:
        return BEST[self.settings.problem]

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

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config)

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        limit = length_limit(self.settings.max_length, self.processor)
        texts = [text_of(row, "text") for row in rows]
        pairs = [text_of(row, "text_pair") for row in rows] if any("text_pair" in row for row in rows) else None
        encoded = encode(self.processor, texts, pairs=pairs, limit=limit)
        return [self._sample(row, item, limit, labelled) for row, item in zip(rows, encoded, strict=True)]

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor), "token_type_ids": 0}
        inputs = collate_tokens([sample.inputs for sample in samples], fill=fill, layout=layout)
        labels = None if samples[0].label is None else self._stack([sample.label for sample in samples])
        return Batch(inputs, row_numbers(samples), labels)

    def count(self, batch: Batch) -> Counts:
        return {"loss": len(batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        logits = model(**batch.inputs).logits
        return {"loss": weighted(self._losses(logits.float(), batch.labels), batch)}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the last hidden states at the sample's tokens."""
        return mean_of_tokens(states_below_head(model, batch.inputs), batch)

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """`logits`: (samples, classes) float32; with labels also `losses`: (samples,)."""
        logits = model(**batch.inputs).logits.float()
        return {"logits": logits} | ({} if batch.labels is None else {"losses": self._losses(logits, batch.labels)})

    def evaluator(self) -> Evaluator:
        lower = frozenset({"loss", "mse", "mae"})
        return Evaluator(self._records, self._score, lower_is_better=lower, columns=self._columns)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring records made up for all classes."""
        if self.settings.problem == "regression":
            return list(self._score([(0.0, 0.0, 0.0, None), (0.0, 1.0, 1.0, None)]))
        numbers = range(len(self.labels))
        if self.settings.problem == "multi_label":
            return list(self._score([(0.0, [1 for _ in numbers], [1 for _ in numbers], None)]))
        return list(self._score([(0.0, number, number, 1.0) for number in numbers]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The class and its probability; the list of classes and of their probabilities; or the number, no score."""
        logits = outputs["logits"]
        if self.settings.problem == "regression":
            return [{"prediction": value, "score": None} for value in logits[:, 0].tolist()]
        if self.settings.problem == "multi_label":
            return [self._chosen(row, every=every) for row in logits.sigmoid().tolist()]
        return best_classes(logits, self.labels, every=every)

    @property
    def has_classes(self) -> bool:
        return self.settings.problem != "regression"

    def classes(self, sample: Sample) -> list[int]:
        if self.settings.labels is None:
            return []
        return sample.label if isinstance(sample.label, list) else [int(sample.label)]

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
        truncated, drop = is_cut(encoded.length, row, limit=limit, too_long=self.settings.too_long)
        return Sample(
            encoded.inputs,
            self._label(row) if labelled else None,
            cost=len(encoded.inputs["input_ids"]),
            counts={"loss": int(labelled)},
            drop=drop,
            truncated=truncated,
        )

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

    def _stack(self, labels: Sequence[Any]) -> Tensor:
        if self.settings.problem == "single_label":
            return torch.tensor(labels)
        if self.settings.problem == "regression":
            return torch.tensor(labels, dtype=torch.float32)
        chosen = torch.zeros(len(labels), len(self.labels))
        for row, ids in enumerate(labels):
            chosen[row, ids] = 1.0
        return chosen

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.settings.problem == "regression":
            return functional.mse_loss(logits[:, 0], labels, reduction="none")
        if self.settings.problem == "multi_label":
            return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)
        return functional.cross_entropy(logits, labels, reduction="none")

    def _records(self, outputs: Outputs, batch: Batch) -> list[Record]:
        logits, labels = outputs["logits"], batch.labels
        scores: list[float | None] = [None] * len(batch)
        if self.settings.problem == "regression":
            guesses = logits[:, 0]
        elif self.settings.problem == "multi_label":
            guesses, labels = (logits > 0).int(), labels.int()
        else:
            guesses, scores = logits.argmax(dim=-1), logits.softmax(dim=-1).amax(dim=-1).tolist()
        return list(zip(outputs["losses"].tolist(), guesses.tolist(), labels.tolist(), scores, strict=True))

    def _score(self, records: Sequence[Record]) -> dict[str, float]:
        losses, guesses, truth, _ = zip(*records, strict=True)
        scores = self._metric().compute(predictions=list(guesses), references=list(truth))
        return {"loss": sum(losses) / len(losses), **scores}

    def _columns(self, records: Sequence[Record]) -> Columns:
        losses, guesses, truth, scores = (list(column) for column in zip(*records, strict=True))
        prediction, label = ([self._named(value) for value in values] for values in (guesses, truth))
        return {"loss": losses, "prediction": prediction, "label": label, "score": scores}

    def _named(self, value: Any) -> float | str | list[str]:
        """A number, a class, or the classes of which a vector has a 1."""
        if self.settings.problem == "regression":
            return float(value)
        if self.settings.problem == "single_label":
            return self.labels[value]
        return [label for label, bit in zip(self.labels, value, strict=True) if bit]

    def _metric(self) -> ClassificationScores | MultiLabelScores | RegressionScores:
        if self.settings.problem == "regression":
            return RegressionScores()
        metric = MultiLabelScores if self.settings.problem == "multi_label" else ClassificationScores
        return metric(self.labels)

    def _chosen(self, probabilities: Sequence[float], *, every: bool) -> Answer:
        chosen = [(label, value) for label, value in zip(self.labels, probabilities, strict=True) if value > 0.5]
        answer = {"prediction": [label for label, _ in chosen], "score": [value for _, value in chosen]}
        return {**answer, "scores": dict(zip(self.labels, probabilities, strict=True))} if every else answer


def _single(rows: Iterable[Row]) -> Iterator[str]:
    return (class_name(row, "label") for row in rows)
