"""A task that learns the classes as a teacher beside the model gives them, asked for each micro-batch."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import kl_div

from ftscale.config.own_task import OwnTaskSettings
from ftscale.config.schema import ModelConfig
from ftscale.data.sample import Sample
from ftscale.modalities.collate import collate_tokens, pad_id
from ftscale.modalities.encode import encode
from ftscale.modalities.text import Text
from ftscale.models.companion import Companion
from ftscale.tasks.base import Evaluator, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch


class DistilSettings(OwnTaskSettings):
    """The classes of a text (`text`) by another model."""

    columns: ClassVar = (("text",),)
    label_columns: ClassVar = frozenset()
    can: ClassVar = frozenset({"flat_rows"})
    name: Literal["distil"] = "distil"
    """The task."""
    teacher: ModelConfig
    """The model to learn from."""


class Distil(Task):
    """A row is one target: the teacher's probabilities."""

    auto_class = "AutoModelForSequenceClassification"
    modality = Text()
    pools = True

    def __init__(self, settings: DistilSettings, processor: Any = None) -> None:
        super().__init__(settings, processor)
        self.teacher = Companion("teacher", settings.teacher, self.auto_class, pools=True)

    def companions(self) -> tuple[Companion, ...]:
        return (self.teacher,)

    def prepare(self, rows: Sequence[dict[str, Any]], *, labelled: bool = True) -> list[Sample]:
        encoded = encode(self.processor, [row["text"] for row in rows], limit=64)
        return [
            Sample(item.inputs, cost=len(item.inputs["input_ids"]), counts={"loss": int(labelled)}) for item in encoded
        ]

    def collate(self, samples: Sequence[Sample], *, layout: str, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor)}
        inputs = collate_tokens([sample.inputs for sample in samples], fill=fill, layout=layout)
        return Batch(inputs, row_numbers(samples))

    def count(self, batch: Batch) -> dict[str, float]:
        return {"loss": len(batch)}

    def loss(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": weighted(self.distances(model, batch), batch)}

    def distances(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        ours = model(**batch.inputs).logits.float().log_softmax(dim=-1)
        theirs = self.teacher(**batch.inputs).logits.float().log_softmax(dim=-1)
        return kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        return {"losses": self.distances(model, batch)}

    def evaluator(self) -> Evaluator:
        return Evaluator(
            lambda outputs, batch: outputs["losses"].tolist(), lambda records: {"loss": sum(records) / len(records)}
        )

    def metric_names(self) -> list[str]:
        return ["loss"]
