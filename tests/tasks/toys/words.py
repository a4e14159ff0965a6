"""A task whose tokenizer knows the words of the training rows, and those alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from ftscale.config.own_task import OwnTaskSettings
from ftscale.config.schema import ModelConfig
from ftscale.data.sample import Sample
from ftscale.modalities.base import NOT_LEARNED
from ftscale.modalities.collate import collate_tokens, pad_id
from ftscale.modalities.encode import encode
from ftscale.modalities.text import Text
from ftscale.tasks.base import Evaluator, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch

SPECIAL = ("<pad>", "<unk>")


class WordsSettings(OwnTaskSettings):
    """A class, 0 or 1, of a text by its words (`text`, `label`)."""

    columns: ClassVar = (("text", "label"),)
    label_columns: ClassVar = frozenset({"label"})
    can: ClassVar = frozenset({"brings_head"})
    name: Literal["words"] = "words"
    """The task."""


class OfWords(Text):
    """Text in whole words; those that no training row has are one unknown word."""

    learns = frozenset({"words"})

    def load_processor(self, config: ModelConfig, *, learned: Mapping[str, Any] = NOT_LEARNED) -> Any:
        if not learned:
            return super().load_processor(config)
        vocabulary = {word: number for number, word in enumerate((*SPECIAL, *learned["words"]))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")

    def is_learned(self, processor: Any) -> bool:
        return isinstance(processor.backend_tokenizer.model, models.WordLevel)


class Words(Task):
    """A row is one target; the embedding has a row for each word."""

    auto_class = "AutoModelForSequenceClassification"
    modality = OfWords()
    pools = True

    def fit(self, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        return {"words": sorted({word for row in rows for word in row["text"].split()})}

    def model_settings(self) -> dict[str, Any]:
        size = {} if self.processor is None else {"vocab_size": len(self.processor)}
        return {"num_labels": 2, "pad_token_id": 0, **size}

    def prepare(self, rows: Sequence[dict[str, Any]], *, labelled: bool = True) -> list[Sample]:
        encoded = encode(self.processor, [row["text"] for row in rows], limit=64)
        return [
            Sample(
                item.inputs,
                int(row["label"]) if labelled else None,
                cost=len(item.inputs["input_ids"]),
                counts={"loss": int(labelled)},
            )
            for row, item in zip(rows, encoded, strict=True)
        ]

    def collate(self, samples: Sequence[Sample], *, layout: str, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor)}
        inputs = collate_tokens([sample.inputs for sample in samples], fill=fill, layout=layout)
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
        scores = outputs["logits"].softmax(dim=-1)
        return [{"prediction": int(row.argmax()), "score": float(row[1])} for row in scores]
