"""A task whose target a frozen model computes of each row before the first step."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from ftscale.config.own_task import OwnTaskSettings
from ftscale.config.schema import ModelConfig
from ftscale.data.sample import Sample
from ftscale.modalities.collate import collate_tokens, pad_id
from ftscale.modalities.encode import encode
from ftscale.modalities.text import Text
from ftscale.models.companion import Companion
from ftscale.tasks.base import Evaluator, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch
from ftscale.tasks.computed import ComputedColumn

computed: list[int] = []
"""Samples of each batch that was computed in this process."""


class FeaturesSettings(OwnTaskSettings):
    """The features that a frozen model has of a text (`text`)."""

    columns: ClassVar = (("text",),)
    label_columns: ClassVar = frozenset()
    can: ClassVar = frozenset({"flat_rows", "brings_head"})
    name: Literal["features"] = "features"
    """The task."""
    teacher: str
    """Folder of the frozen model."""
    scale: float = 1.0
    """Factor of its features."""
    width: int = 32
    """Their number."""


class Features(Task):
    """A row is one target: the mean of the frozen model's last hidden states."""

    auto_class = "AutoModelForSequenceClassification"
    modality = Text()
    pools = True

    def __init__(self, settings: FeaturesSettings, processor: Any = None) -> None:
        super().__init__(settings, processor)
        self.teacher = Companion("teacher", ModelConfig(name=settings.teacher), "AutoModel")

    def computed(self) -> tuple[ComputedColumn, ...]:
        return (ComputedColumn("features", self.teacher, self.features, {"scale": self.settings.scale}),)

    def features(self, teacher: Companion, batch: Batch) -> torch.Tensor:
        computed.append(len(batch))
        states = teacher(**batch.inputs).last_hidden_state
        mask = batch.inputs["attention_mask"][..., None]
        return self.settings.scale * (states * mask).sum(dim=1) / mask.sum(dim=1)

    def model_settings(self) -> dict[str, Any]:
        return {"num_labels": self.settings.width}

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
        errors = (model(**batch.inputs).logits.float() - batch.extra["features"]) ** 2
        return {"loss": weighted(errors.mean(dim=1), batch)}

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        logits = model(**batch.inputs).logits.float()
        return {"losses": ((logits - batch.extra["features"]) ** 2).mean(dim=1)}

    def evaluator(self) -> Evaluator:
        return Evaluator(
            lambda outputs, batch: outputs["losses"].tolist(), lambda records: {"loss": sum(records) / len(records)}
        )

    def metric_names(self) -> list[str]:
        return ["loss"]
