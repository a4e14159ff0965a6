"""What a task is: a class made from its section of the config and bound to its processor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftscale.config import Config
from ftscale.data.loader import Step
from ftscale.data.sample import Sample
from ftscale.modalities.base import Modality
from ftscale.modalities.collate import Layout
from ftscale.models.companion import Companion
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
from ftscale.tasks.computed import ComputedColumn
from ftscale.tasks.context import Context

Row = dict[str, Any]
"""A row as read: the task's column names (`text`, `label`, ...) to values."""

Answer = dict[str, Any]
"""What is predicted for a row: `prediction`, `score` and what the task adds, ready for JSON."""

Pieces = list[tuple[str, bool]]
"""A sample as text in pieces, each with whether it is a target."""


class Task:
    """A task. One is complete with its settings, `auto_class`, `modality`, and the methods that raise here.

    A task that is to check rows and settings alone has no processor.
    """

    auto_class: str
    """Name of the transformers Auto class, e.g. "AutoModelForSequenceClassification"."""
    pipeline_tag: str = ""
    """What the hub calls the task, e.g. "text-classification"; "" = it has no name for it."""
    peft_type: str | None = None
    """What peft calls the task, e.g. "SEQ_CLS"; None = it has no name for it."""
    modality: Modality
    """What goes into the model."""
    terms: Mapping[str, float] = {"loss": 1.0}
    """The coefficient of each term of the loss; the first is the one that global batches in targets are counted by."""
    pools: bool = False
    """Whether the model makes one position of a sample's many, by its mask."""
    unused: tuple[str, ...] = ()
    """Parts of the model from which no loss comes, e.g. a pooler."""
    by_row: bool = True
    """Whether each row makes one sample."""
    extras: tuple[str, ...] = ()
    """Files and folders that `save_extras` writes."""

    def __init__(self, settings: Any, processor: Any = None) -> None:
        """`processor`: from `modality.load_processor`. Raises UserError for settings that the two cannot meet."""
        self.settings = settings
        self.processor = processor

    @classmethod
    def written_out(cls, settings: Any) -> Any:
        """The settings with the contents of files in place of their names, e.g. a template's text."""
        return settings

    # ------------------------------------------------------------ facts

    @property
    def best_metric(self) -> str:
        """The metric that chooses a checkpoint by default."""
        return "loss"

    @property
    def brings_head(self) -> bool:
        """Whether the model's head is new, of as many rows as the task says."""
        return "brings_head" in self.settings.can

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """How samples may lie in a batch, where the model allows it."""
        return self.modality.layouts if "flat_rows" in self.settings.can else ("padded",)

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """What only the training rows can tell, asked before there is a processor; the same on every rank.

        Settings, e.g. `{"labels": (...)}`, are written into the config. What stands under the names that the modality
        `learns`, e.g. a vocabulary, is built into the processor, which is saved with the model.
        """
        return {}

    def tuned(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that the chosen evaluation's scores tell, for test rows, `evaluate` and `predict`."""
        return {}

    def model_settings(self) -> dict[str, Any]:
        """Fields of the model's config, e.g. `num_labels`, `id2label`, `label2id`, `problem_type`."""
        return {}

    def fit_model(self, model: Any, *, seed: int) -> None:
        """Make a loaded model fit the processor. Raises UserError where it cannot."""
        self.modality.fit_model(model, self.processor, seed=seed)

    def model_problems(self, config: Config, model_config: Any) -> list[str]:
        """Why a model of this config is none for the task, as sentences."""
        return []

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        """What settings ask of model and processor that these cannot do together, as sentences."""
        return []

    # ------------------------------------------------------------ frozen models

    def companions(self) -> tuple[Companion, ...]:
        """Frozen models that the loss calls, the same objects at each call; known without a processor."""
        return ()

    def computed(self) -> tuple[ComputedColumn, ...]:
        """Columns that frozen models compute of prepared rows, once; known without a processor."""
        return ()

    # ------------------------------------------------------------ samples and batches

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        """Samples of rows of one source, in order, deterministic. Raises UserError for a row that breaks a rule."""
        raise NotImplementedError

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        """A micro-batch of samples; `train` turns augmentation on, and notes off."""
        raise NotImplementedError

    def count(self, batch: Batch) -> Counts:
        """Targets of a micro-batch, by term."""
        raise NotImplementedError

    # ------------------------------------------------------------ before a step

    @property
    def acts_before_step(self) -> bool:
        """Whether `before_step` does anything."""
        return False

    def before_step(self, step: Step, context: Context) -> Step:
        """The step to train on, before anything of it is counted, e.g. for a loss over the global batch. Collective.

        It may run the model, gather what other ranks have, and give the micro-batches another content, e.g. `extra`.
        As many micro-batches must come back as came; a step with other targets has `counts=None`. Modes of modules,
        random generators and statistics of batch norms are put back behind it.
        """
        return step

    # ------------------------------------------------------------ the model's work

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        """The terms of the loss, with the head run only where a target stands; `batch.weights` are honoured."""
        raise NotImplementedError

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """What evaluation and prediction need of a micro-batch, without gradients."""
        raise NotImplementedError

    def evaluator(self) -> Evaluator:
        """A fresh evaluator."""
        raise NotImplementedError

    def metric_names(self) -> list[str]:
        """What the evaluator may score, each class's own metrics included."""
        raise NotImplementedError

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """`prediction` and `score` for each sample. `every`: also `scores`, by class, where there are classes."""
        raise NotImplementedError

    @property
    def has_classes(self) -> bool:
        """Whether `predictions` can give the scores of all classes."""
        return False

    def answer_names(self, *, every: bool) -> list[str]:
        """The names in an answer, in their order."""
        return ["prediction", "score", *(["scores"] if every else [])]

    def input_row(self, row: Row) -> Row:
        """A row to predict on as `prepare` takes it, where a line of plain text stands for another kind of value."""
        return row

    def merge(self, answers: Sequence[Answer]) -> Answer:
        """The answer to a row by those to its samples, in order; of one alone, that."""
        if len(answers) > 1:
            raise NotImplementedError
        return answers[0]

    # ------------------------------------------------------------ what is shown and saved

    def show(self, row: Row, sample: Sample) -> Pieces:
        """A kept row as the model sees it, its targets marked."""
        return [(self.modality.show_input(sample, self.processor), False), (str(row.get("label", "")), True)]

    def words(self, sample: Sample) -> list[str] | None:
        """The words that its tags are of, as many as there are tags; None where there are no tags."""
        return None

    def sample_warnings(self, samples: Sequence[Sample]) -> list[str]:
        """What kept samples show that is likely a mistake in the data, as ends of sentences."""
        return []

    def target_texts(self, row: Row) -> list[str]:
        """The texts that a row asks the model to write; none for a task that writes none."""
        return []

    def reference(self, sample: Sample) -> str:
        """The text that a generated one is compared with; "" where none is generated."""
        return ""

    def token_ids(self, sample: Sample) -> list[int]:
        """All tokens that a sample is made of, those to be written too."""
        return sample.inputs.get("input_ids", [])

    def classes(self, sample: Sample) -> list[int]:
        """The numbers of the classes that a labelled sample has; none for a task without classes."""
        return []

    def end_ids(self) -> list[int]:
        """Token ids that end what the model writes, to be saved with it; none = as the model's own files say."""
        return []

    def proof_inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Inputs of the model's forward that show whether a saved model answers as the trained one: (samples, ...)."""
        return self.collate(samples, layout="padded", train=False).inputs

    def save_extras(self, folder: Path) -> None:
        """Write what other libraries read besides the model."""


@dataclass
class Evaluator:
    """Collects one small record a sample, from any number of ranks, and scores them in the order of the rows.

    Records are kept by row number, so a sample that two ranks saw (ranks do equal numbers of batches) counts once.
    """

    read: Callable[[Outputs, Batch], Sequence[Any]]
    """One record a sample, in the batch's order; plain Python values or NumPy arrays."""
    score: Callable[[Sequence[Any]], dict[str, float]]
    """Metrics of the records of all rows."""
    lower_is_better: frozenset[str] = frozenset({"loss", "perplexity"})
    """The metrics of which the lower value is the better one."""
    join: Callable[[Sequence[Any]], list[Any]] = list
    """Makes records of rows, which `score` takes, of those of all samples in order; equal where a row is a sample."""
    firsts: Callable[[Sequence[Any]], Sequence[int]] = lambda records: range(len(records))
    """The place of each row's first sample, of the records of all samples in order; rows are those of `join`."""
    columns: Callable[[Sequence[Any]], Columns] = lambda records: {}
    """What is noted of rows, by their records."""
    records: dict[int, Any] = field(default_factory=dict)
    _joined: list[Any] | None = None
    """The records of rows, until another one comes."""

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Take in a micro-batch."""
        self.records.update(zip(batch.rows.tolist(), self.read(outputs, batch), strict=True))
        self._joined = None

    def merge(self, records: dict[int, Any]) -> None:
        """Take in the records of another rank."""
        self.records.update(records)
        self._joined = None

    def of_samples(self) -> list[Any]:
        """One record a sample of what was taken in, in their order."""
        return [self.records[row] for row in sorted(self.records)]

    def in_order(self) -> list[Any]:
        """One record a row of what was taken in, in the order of the rows."""
        if self._joined is None:
            self._joined = self.join(self.of_samples())
        return self._joined

    def compute(self) -> dict[str, float]:
        """Metrics of what was taken in."""
        return self.score(self.in_order())


def collate_samples(task: Task, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
    """`task.collate`, with what was computed of the samples in `extra`: (samples, ...) each; and with `repeats`."""
    batch = task.collate(samples, layout=layout, train=train)
    if any(sample.repeat for sample in samples):
        batch.repeats = torch.tensor([sample.repeat for sample in samples])
    for name in samples[0].extra:
        batch.extra[name] = torch.from_numpy(np.stack([sample.extra[name] for sample in samples]))
    return batch


def frozen_models(task: Task) -> list[Companion]:
    """All that the task names, for the loss or for a column, each once."""
    return list(dict.fromkeys([*task.companions(), *(column.companion for column in task.computed())]))


def weighted(losses: Tensor, batch: Batch) -> Tensor:
    """The sum of (samples,) losses, each times its sample's weight: () float32."""
    return (losses if batch.weights is None else losses * batch.weights).sum()


def row_numbers(samples: Sequence[Sample]) -> Tensor:
    """The samples' numbers in their data set: (samples,) int64."""
    return torch.tensor([sample.number for sample in samples])
