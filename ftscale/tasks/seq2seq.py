"""Sequence to sequence: a text from a text, by an encoder-decoder, scored by its loss and by what it generates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ftscale.config.schema import GenerationSettings, Seq2SeqSettings
from ftscale.models.generate import check_options, end_ids, generate, mean_until_end
from ftscale.models.lm_head import lm_loss, lm_target_losses
from ftscale.models.probing import transformers_model
from ftscale.tasks import COLUMNS
from ftscale.tasks.base import Batch, Evaluator, Layout, Outputs, Row, Sample, model_inputs
from ftscale.tasks.collate import IGNORED, collate_tokens, pad_id, pad_rows
from ftscale.tasks.encode import Encoded, encode, length_limit, overlong_note
from ftscale.tasks.rows import text_of


class Seq2Seq:
    """The task of `task: seq2seq`. A target is one token of the text to write; padded layout only.

    Labels of a batch: (samples, longest target) int64, -100 in the padding.
    """

    auto_class = "AutoModelForSeq2SeqLM"
    processor_class = "tokenizer"
    columns = COLUMNS["seq2seq"]
    optional = ()

    def __init__(self, settings: Seq2SeqSettings) -> None:
        self.settings = settings
        check_options(settings.generate or GenerationSettings())

    @property
    def best_metric(self) -> tuple[str, bool]:
        """Choose checkpoints by BLEU, higher is better, where evaluation generates; else by the loss."""
        return ("loss", False) if self.settings.generate is None else ("bleu", True)

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Learn nothing from the training rows: no setting of this task depends on them."""
        return {}

    def model_settings(self) -> dict[str, Any]:
        """Set no field of the model's config: the output head over the vocabulary is the model's own."""
        return {}

    def prepare(self, rows: Sequence[Row], processor: Any, *, labelled: bool = True) -> list[Sample]:
        """One sample a row; where evaluation generates, with `reference`, the whole target text."""
        limit = length_limit(self.settings.max_length, processor)
        texts = [self.settings.source_prefix + text_of(row, "source") for row in rows]
        samples = [
            self._sample(row, item, limit)
            for row, item in zip(rows, encode(processor, texts, limit=limit), strict=True)
        ]
        if not labelled:
            return samples
        limit = self.settings.max_target_length or limit
        targets = [text_of(row, "target") for row in rows]
        encoded = encode(processor, targets, limit=limit, kind="target")
        return [self._labelled(*parts, limit) for parts in zip(samples, rows, targets, encoded, strict=True)]

    def collator(self, processor: Any, *, layout: Layout, train: bool) -> Callable[[Sequence[Sample]], Batch]:
        """Return a collator of padded sources and targets; in evaluation it adds the whole target texts."""
        assert layout == "padded", "an encoder-decoder takes padded rows"
        return partial(_collate, fill={"input_ids": pad_id(processor)}, references=not train)

    def count(self, batch: Batch) -> torch.Tensor:
        """Count the tokens of the texts to write: () int64."""
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum the cross-entropy of the tokens to write, each given the source and those before it: () float32."""
        return lm_loss(model, _inputs(model, batch), batch["labels"])

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch, processor: Any) -> Outputs:
        """With labels, `losses`, `counts`, `correct`: (samples,), sums over each sample's targets, and `loss`: ().

        With `generate`, and without labels, `predictions`: a text each; without labels also `scores`: the mean
        log-probability that the generated tokens had.
        """
        outputs: Outputs = _sample_losses(model, batch) if "labels" in batch else {}
        if "labels" in batch and self.settings.generate is None:
            return outputs
        settings = self.settings.generate or GenerationSettings()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        written, chances = generate(model, inputs, settings, scored="labels" not in batch)
        outputs["predictions"] = processor.batch_decode(written, skip_special_tokens=True)
        if chances is not None:
            outputs["scores"] = mean_until_end(chances, written, end_ids(model))
        return outputs

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss, perplexity and token accuracy, and of the texts that `generate` writes."""
        return Evaluator(_records, _score)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        text = None if self.settings.generate is None else "text"
        return list(_score([_Record(0.0, 1, 1, text, text)]))

    def predictions(
        self, outputs: Outputs, batch: Batch, processor: Any, *, every: bool = False
    ) -> list[dict[str, Any]]:
        """The generated text, and the mean log-probability that its tokens had."""
        return [
            {"prediction": text, "score": score}
            for text, score in zip(outputs["predictions"], outputs["scores"], strict=True)
        ]

    def _sample(self, row: Row, encoded: Encoded, limit: int) -> Sample:
        ids = encoded.inputs["input_ids"]
        note = overlong_note(encoded.length, row, limit=limit, too_long=self.settings.too_long)
        return {"input_ids": ids, "length": len(ids), "targets": 0, "note": note}

    def _labelled(self, sample: Sample, row: Row, target: str, encoded: Encoded, limit: int) -> Sample:
        labels = encoded.inputs["input_ids"]
        note = overlong_note(
            encoded.length, row, limit=limit, too_long=self.settings.too_long, setting="max_target_length"
        )
        if not target.strip():
            note = "no_target"
        labelled = {
            **sample,
            "labels": labels,
            "length": sample["length"] + len(labels),
            "targets": len(labels),
            "note": sample["note"] if sample["note"] == "too_long" else note or sample["note"],
        }
        return labelled if self.settings.generate is None else {**labelled, "reference": target}


@dataclass(frozen=True)
class _Record:
    """What evaluation keeps of a sample."""

    loss: float
    num_targets: int
    num_correct: int
    prediction: str | None
    """The generated text; None where evaluation does not generate."""
    reference: str | None


def _collate(samples: Sequence[Sample], *, fill: dict[str, int], references: bool) -> Batch:
    batch = collate_tokens(samples, fill=fill, layout="padded")
    if "labels" in samples[0]:
        batch["labels"] = pad_rows([sample["labels"] for sample in samples], IGNORED)
    if references and "reference" in samples[0]:
        batch["references"] = [sample["reference"] for sample in samples]
    return batch


def _inputs(model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's inputs: the source, and the target moved one to the right."""
    return {**model_inputs(batch), "decoder_input_ids": _decoder_input_ids(model, batch["labels"])}


def _decoder_input_ids(model: torch.nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """The model's own way (mBART's differs); for one without (M2M100) the start token, then all labels but the last."""
    inner = transformers_model(model)
    if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        return inner.prepare_decoder_input_ids_from_labels(labels=labels)
    start = labels.new_full((len(labels), 1), inner.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill_(shifted == IGNORED, inner.config.pad_token_id)


def _sample_losses(model: torch.nn.Module, batch: Batch) -> Outputs:
    losses, correct = lm_target_losses(model, _inputs(model, batch), batch["labels"])
    owners = (batch["labels"] != IGNORED).nonzero()[:, 0]
    sums = torch.zeros(3, len(batch["labels"]), device=losses.device)
    sums.index_add_(1, owners, torch.stack([losses.float(), torch.ones_like(losses.float()), correct.float()]))
    return {"losses": sums[0], "counts": sums[1].long(), "correct": sums[2].long(), "loss": sums[0].sum()}


def _records(outputs: Outputs, batch: Batch) -> list[_Record]:
    sums = (outputs["losses"].tolist(), outputs["counts"].tolist(), outputs["correct"].tolist())
    texts = (outputs["predictions"], batch["references"]) if "predictions" in outputs else None
    nothing = [None] * len(sums[0])
    return [_Record(*parts) for parts in zip(*sums, *(texts or (nothing, nothing)), strict=True)]


def _score(records: Sequence[_Record]) -> dict[str, float]:
    count = sum(record.num_targets for record in records)
    loss = math.fsum(record.loss for record in records) / count
    scores = {
        "loss": loss,
        "perplexity": math.inf if loss > 700 else math.exp(loss),  # a double ends at exp(709)
        "token_accuracy": sum(record.num_correct for record in records) / count,
    }
    predictions = [record.prediction for record in records if record.prediction is not None]
    if predictions:
        from ftscale.metrics.rouge import Rouge
        from ftscale.metrics.translation import TranslationScores

        references = [record.reference for record in records]
        scores |= TranslationScores().compute(predictions=predictions, references=references)
        scores |= Rouge().compute(predictions=predictions, references=references)
    return scores
