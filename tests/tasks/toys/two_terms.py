"""A task with two terms of a loss, each with its own denominator, which only the batch knows."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch.nn.functional import cross_entropy

from ftscale.config.own_task import OwnTaskSettings
from ftscale.data.sample import Sample
from ftscale.modalities.collate import collate_tokens, pad_id
from ftscale.modalities.encode import encode
from ftscale.modalities.text import Text
from ftscale.tasks.base import Evaluator, Task, row_numbers
from ftscale.tasks.batch import Batch


class TwoTermsSettings(OwnTaskSettings):
    """A class of a text (`text`, `label`), and how many of its tokens have an even number."""

    columns: ClassVar = (("text", "label"),)
    label_columns: ClassVar = frozenset({"label"})
    can: ClassVar = frozenset({"brings_head"})
    name: Literal["two_terms"] = "two_terms"
    """The task."""


class TwoTerms(Task):
    """The class is learned of texts with an even number of tokens alone; the share of even tokens weighs by length."""

    auto_class = "AutoModelForSequenceClassification"
    modality = Text()
    pools = True
    terms = {"class": 1.0, "share": 0.5}

    def model_settings(self) -> dict[str, Any]:
        return {"num_labels": 3}

    def prepare(self, rows: Sequence[dict[str, Any]], *, labelled: bool = True) -> list[Sample]:
        encoded = encode(self.processor, [row["text"] for row in rows], limit=64)
        return [
            Sample(item.inputs, int(row["label"]), cost=len(item.inputs["input_ids"]), counts=None)
            for row, item in zip(rows, encoded, strict=True)
        ]

    def collate(self, samples: Sequence[Sample], *, layout: str, train: bool) -> Batch:
        inputs = collate_tokens(
            [sample.inputs for sample in samples], fill={"input_ids": pad_id(self.processor)}, layout="padded"
        )
        return Batch(inputs, row_numbers(samples), torch.tensor([sample.label for sample in samples]))

    def count(self, batch: Batch) -> dict[str, float]:
        lengths = batch.inputs["attention_mask"].sum(dim=1)
        return {"class": int((lengths % 2 == 0).sum()), "share": 0.1 * int(lengths.sum())}

    def loss(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        logits, mask = model(**batch.inputs).logits.float(), batch.inputs["attention_mask"]
        lengths = mask.sum(dim=1)
        classes = cross_entropy(logits[:, :2], batch.labels, reduction="none")
        shares = (((batch.inputs["input_ids"] % 2 == 0) & (mask > 0)).sum(dim=1) / lengths).float()
        return {
            "class": (classes * (lengths % 2 == 0)).sum(),
            "share": ((logits[:, 2] - shares) ** 2 * lengths).sum(),
        }

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        return {"terms": self.loss(model, batch), "size": len(batch)}

    def evaluator(self) -> Evaluator:
        return Evaluator(lambda outputs, batch: [0.0] * len(batch), lambda records: {"loss": sum(records)})

    def metric_names(self) -> list[str]:
        return ["loss"]
