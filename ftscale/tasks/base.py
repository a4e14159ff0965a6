"""What the rest of ftscale knows of a task: its members, the shape of a batch, and the evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

Row = dict[str, Any]
"""A row as read: the task's column names (`text`, `label`, ...) to values."""

Sample = dict[str, Any]
"""A prepared row: model inputs and labels as plain lists or numbers, and

- `length`: int, its cost in tokens (1 for an image);
- `targets`: int, what `count` will count for it;
- `note`: "" (kept whole), "truncated", or the reason for which it is dropped ("too_long", "no_target", ...).

A chat also has `said`, `left_out` and `unseen_prompt`, as `data.chat.Conversation`; they are counted and not kept.
"""

KEPT = ("", "truncated")

Batch = dict[str, Any]
"""A micro-batch: model inputs, `labels`, and `row`: (samples,) int64, the samples' numbers in their data set.

Padded layout: tensors (samples, longest), with `attention_mask`. Flat layout: tensors (1, tokens), no attention
mask, `position_ids` that restart at each sample, and the arguments by which transformers' attention functions know
the samples: `cu_seq_lens_q`, `cu_seq_lens_k`: (samples + 1,) int32, `max_length_q`, `max_length_k`: int.

Outside training a batch may also hold `references` and `prompts`: lists with one plain Python value a sample, which
the model's forward never sees and evaluation and prediction read; `prompts` are token ids to generate from.
"""

Outputs = dict[str, Any]
"""What the evaluator and `predictions` read: `loss` (sum over targets) where there are labels, and task-specific
tensors with one entry a sample."""

Layout = Literal["flat", "padded"]

NOT_INPUTS = ("labels", "row", "references", "prompts")


def model_inputs(batch: Batch) -> dict[str, Any]:
    """The part of a batch that the model's forward takes."""
    return {name: value for name, value in batch.items() if name not in NOT_INPUTS}


class Task(Protocol):
    """A task, built from its section of the config: `TextClassification(config.task)`. No base class is needed."""

    auto_class: str
    """Name of the transformers Auto class, e.g. "AutoModelForSequenceClassification"."""
    processor_class: Literal["tokenizer", "image_processor"]
    columns: tuple[tuple[str, ...], ...]
    """Alternatives of column names, one of which a row must have whole, e.g. (("text", "label"),)."""
    optional: tuple[str, ...]
    """Columns of these that a row may have without a value."""
    best_metric: tuple[str, bool]
    """The metric that chooses a checkpoint by default, and whether higher is better."""

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Settings that only the training rows can tell, e.g. `{"labels": (...)}`; written into the config."""

    def model_settings(self) -> dict[str, Any]:
        """Fields of the model's config, e.g. `num_labels`, `id2label`, `label2id`, `problem_type`."""

    def prepare(self, rows: Sequence[Row], processor: Any, *, labelled: bool = True) -> list[Sample]:
        """One sample a row, in order, deterministic. Raises UserError for a row that breaks a rule."""

    def collator(self, processor: Any, *, layout: Layout, train: bool) -> Callable[[Sequence[Sample]], Batch]:
        """A function that makes a micro-batch of samples; `train` turns augmentation on."""

    def count(self, batch: Batch) -> torch.Tensor:
        """Number of targets of a micro-batch: () int64."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum of the loss over the targets: () float32, with the head run only where a target stands."""

    def outputs(self, model: torch.nn.Module, batch: Batch, processor: Any) -> Outputs:
        """What evaluation and prediction need of a micro-batch, without gradients."""

    def evaluator(self) -> Evaluator:
        """A fresh evaluator."""

    def metric_names(self) -> list[str]:
        """What the evaluator may score, each class's own metrics included."""

    def predictions(
        self, outputs: Outputs, batch: Batch, processor: Any, *, every: bool = False
    ) -> list[dict[str, Any]]:
        """`prediction` and `score` for each sample, ready for JSON.

        `every`: also `scores`, by class (for words, a list of them); tasks without classes have none.
        """


@dataclass
class Evaluator:
    """Collects one small record a sample, from any number of ranks, and scores them in the order of the rows.

    Records are kept by row number, so a sample that two ranks saw (ranks do equal numbers of batches) counts once.
    """

    read: Callable[[Outputs, Batch], Sequence[Any]]
    """One record a sample, in the batch's order; plain Python values or NumPy arrays."""
    score: Callable[[Sequence[Any]], dict[str, float]]
    """Metrics of all records."""
    records: dict[int, Any] = field(default_factory=dict)

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Take in the records of a micro-batch; a row that is there already is replaced."""
        self.records.update(zip(batch["row"].tolist(), self.read(outputs, batch), strict=True))

    def merge(self, records: dict[int, Any]) -> None:
        """Take in the records of another rank."""
        self.records.update(records)

    def compute(self) -> dict[str, float]:
        """Score all records, sorted by row number, so that ranks and batches do not change a metric."""
        return self.score([self.records[row] for row in sorted(self.records)])
