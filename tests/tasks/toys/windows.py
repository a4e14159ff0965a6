"""A task whose samples are windows of a row: one answer a row, made of those to its windows."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch.nn.functional import cross_entropy

from ftscale.config.own_task import OwnTaskSettings
from ftscale.data.sample import Sample
from ftscale.modalities.collate import collate_tokens, pad_id
from ftscale.modalities.text import Text
from ftscale.tasks.base import Evaluator, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch


class WindowsSettings(OwnTaskSettings):
    """A class, 0 or 1, of a text of any length (`text`, `label`)."""

    columns: ClassVar = (("text", "label"),)
    label_columns: ClassVar = frozenset({"label"})
    can: ClassVar = frozenset({"brings_head"})
    name: Literal["windows"] = "windows"
    """The task."""
    size: PositiveInt = 8
    """Tokens of a window."""


class Windows(Task):
    """Each window learns its row's class; the row's answer is the mean of its windows' probabilities."""

    auto_class = "AutoModelForSequenceClassification"
    modality = Text()
    pools = True
    by_row = False

    def model_settings(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def prepare(self, rows: Sequence[dict[str, Any]], *, labelled: bool = True) -> list[Sample]:
        samples = []
        for number, row in enumerate(rows):
            ids = self.processor(row["text"])["input_ids"]
            for start in range(0, len(ids), self.settings.size):
                window = ids[start : start + self.settings.size]
                samples.append(
                    Sample(
                        {"input_ids": window},
                        int(row["label"]) if labelled else None,
                        cost=len(window),
                        counts={"loss": int(labelled)},
                        rows=(number, number + 1),
                    )
                )
        return samples

    def collate(self, samples: Sequence[Sample], *, layout: str, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor)}
        inputs = collate_tokens([sample.inputs for sample in samples], fill=fill, layout="padded")
        labels = None if samples[0].label is None else torch.tensor([sample.label for sample in samples])
        return Batch(inputs, row_numbers(samples), labels)

    def count(self, batch: Batch) -> dict[str, float]:
        return {"loss": len(batch)}

    def loss(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        logits = model(**batch.inputs).logits.float()
        return {"loss": weighted(cross_entropy(logits, batch.labels, reduction="none"), batch)}

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        return {"logits": model(**batch.inputs).logits.float()}

    def evaluator(self) -> Evaluator:
        def read(outputs: dict[str, Any], batch: Batch) -> list[float]:
            return cross_entropy(outputs["logits"], batch.labels, reduction="none").tolist()

        return Evaluator(read, lambda records: {"loss": sum(records) / len(records)})

    def metric_names(self) -> list[str]:
        return ["loss"]

    def predictions(self, outputs: dict[str, Any], batch: Batch, *, every: bool = False) -> list[dict[str, Any]]:
        return [{"prediction": None, "score": value} for value in outputs["logits"].softmax(dim=-1)[:, 1].tolist()]

    def merge(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        score = sum(answer["score"] for answer in answers) / len(answers)
        return {"prediction": int(score > 0.5), "score": score}
