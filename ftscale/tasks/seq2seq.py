"""Sequence to sequence: a text from a text, by an encoder-decoder, scored by its loss and by what it generates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.base import GenerationSettings
from ftscale.config.tasks.seq2seq import Seq2SeqSettings
from ftscale.data.sample import Sample
from ftscale.modalities.collate import IGNORED, Layout, collate_tokens, pad_id, pad_rows
from ftscale.modalities.encode import Encoded, encode, length_limit
from ftscale.modalities.text import Text
from ftscale.models.agree import agree_on_start
from ftscale.models.generate import check_options, end_ids, generate, mean_until_end
from ftscale.models.languages import set_languages
from ftscale.models.lm_head import lm_log_probs, lm_loss, lm_target_logits, lm_target_losses
from ftscale.models.probing import transformers_model
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import text_of, texts_of
from ftscale.tasks.text_fit import text_problems
from ftscale.tasks.token_sums import (
    TokenRecord,
    sums_of_samples,
    sums_of_targets,
    token_columns,
    token_records,
    token_scores,
)


class Seq2Seq(Task):
    """The task of `task: seq2seq`. A target is one token of the text to write; padded layout only.

    Labels of a batch: (samples, longest target) int64, -100 in the padding. Where evaluation generates, a sample's note
    is the whole text of its target, and of other references where a row has several: a list.
    """

    auto_class = "AutoModelForSeq2SeqLM"
    pipeline_tag = "text2text-generation"
    peft_type = "SEQ_2_SEQ_LM"
    modality = Text()
    settings: Seq2SeqSettings

    def __init__(self, settings: Seq2SeqSettings, processor: Any = None) -> None:
        """Gives the tokenizer the languages, which are saved with it. Raises UserError where it lacks them."""
        super().__init__(settings, processor)
        check_options(settings.generate or GenerationSettings())
        if processor is not None:
            problems = set_languages(processor, source=settings.source_language, target=settings.target_language)
            if problems:
                raise UserError(*problems)

    @property
    def best_metric(self) -> str:
        return "loss" if self.settings.generate is None else "bleu"

    def fit_model(self, model: Any, *, seed: int) -> None:
        """Also with which token its decoder starts."""
        super().fit_model(model, seed=seed)
        agree_on_start(model, self.processor)

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config, targets="max_target_length")

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        limit = length_limit(self.settings.max_length, self.processor)
        texts = [self.settings.source_prefix + text_of(row, "source") for row in rows]
        encoded = encode(self.processor, texts, limit=limit)
        samples = [self._sample(row, item, limit) for row, item in zip(rows, encoded, strict=True)]
        if not labelled:
            return samples
        limit = self.settings.max_target_length or limit
        targets = [texts_of(row, "target") for row in rows]
        encoded = encode(self.processor, [texts[0] for texts in targets], limit=limit, kind="target")
        return [self._labelled(*parts, limit) for parts in zip(samples, rows, targets, encoded, strict=True)]

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        assert layout == "padded", "an encoder-decoder takes padded rows"
        fill = {"input_ids": pad_id(self.processor)}
        inputs = collate_tokens([sample.inputs for sample in samples], fill=fill, layout="padded")
        labels = None if samples[0].label is None else pad_rows([sample.label for sample in samples], IGNORED)
        notes = [] if train or samples[0].note is None else [sample.note for sample in samples]
        return Batch(inputs, row_numbers(samples), labels, notes=notes)

    def count(self, batch: Batch) -> Counts:
        return {"loss": int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        weights = None if batch.weights is None else batch.weights[batch.owners(batch.labels != IGNORED)]
        return {"loss": lm_loss(model, _inputs(model, batch), batch.labels, weights=weights)}

    def target_logits(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, slice]]:
        return lm_target_logits(model, _inputs(model, batch), batch.labels)

    def log_probs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return sums_of_targets(batch, lm_log_probs(model, _inputs(model, batch), batch.labels))

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """With labels, `losses`, `counts`, `correct`: (samples,), sums over each sample's targets.

        With `generate`, and without labels, `predictions`: a text each; without labels also `scores`: the mean
        log-probability that the generated tokens had.
        """
        outputs: Outputs = {}
        if batch.labels is not None:
            outputs = sums_of_samples(batch, *lm_target_losses(model, _inputs(model, batch), batch.labels))
            if self.settings.generate is None:
                return outputs
        settings = self.settings.generate or GenerationSettings()
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        written, chances = generate(model, inputs, settings, scored=batch.labels is None)
        outputs["predictions"] = self.processor.batch_decode(written, skip_special_tokens=True)
        if chances is not None:
            outputs["scores"] = mean_until_end(chances, written, end_ids(model))
        return outputs

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss, perplexity and token accuracy, and of the texts that `generate` writes."""
        return Evaluator(_records, _score, columns=_columns)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        text = None if self.settings.generate is None else "text"
        return list(_score([_Record(0.0, 1, 1, text, [text] if text else None)]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The generated text, and the mean log-probability that its tokens had."""
        return [
            {"prediction": text, "score": score}
            for text, score in zip(outputs["predictions"], outputs["scores"], strict=True)
        ]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """What the encoder reads, and what the decoder is to write."""
        decode = self.processor.decode
        return [(decode(sample.inputs["input_ids"]), False), (decode(sample.label), True)]

    def target_texts(self, row: Row) -> list[str]:
        """What a row asks the model to write."""
        return texts_of(row, "target")[:1]

    def reference(self, sample: Sample) -> str:
        return sample.note[0] if sample.note else ""

    def token_ids(self, sample: Sample) -> list[int]:
        return [*sample.inputs["input_ids"], *sample.label]

    def proof_inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """With labels, of which every encoder-decoder makes its decoder's inputs."""
        batch = self.collate(samples, layout="padded", train=False)
        return {**batch.inputs, "labels": batch.labels}

    def _sample(self, row: Row, encoded: Encoded, limit: int) -> Sample:
        ids = encoded.inputs["input_ids"]
        truncated, drop = is_cut(encoded.length, row, limit=limit, too_long=self.settings.too_long)
        return Sample({"input_ids": ids}, cost=len(ids), counts={"loss": 0}, drop=drop, truncated=truncated)

    def _labelled(self, sample: Sample, row: Row, targets: list[str], encoded: Encoded, limit: int) -> Sample:
        labels, too_long = encoded.inputs["input_ids"], self.settings.too_long
        truncated, drop = is_cut(encoded.length, row, limit=limit, too_long=too_long, setting="max_target_length")
        sample.label = labels
        sample.cost += len(labels)
        sample.counts = {"loss": len(labels)}
        sample.truncated = sample.truncated or truncated
        sample.drop = sample.drop or ("no_target" if not targets[0].strip() else drop)
        sample.note = None if self.settings.generate is None else targets
        return sample


@dataclass(frozen=True)
class _Record(TokenRecord):
    """What evaluation keeps of a sample."""

    prediction: str | None
    """The generated text; None where evaluation does not generate."""
    references: list[str] | None


def _inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's inputs: the source, and the target moved one to the right."""
    return {**batch.inputs, "decoder_input_ids": _decoder_input_ids(model, batch.labels)}


def _decoder_input_ids(model: nn.Module, labels: Tensor) -> Tensor:
    """The model's own way (mBART's differs); for one without (M2M100) the start token, then all labels but the last."""
    inner = transformers_model(model)
    if hasattr(inner, "prepare_decoder_input_ids_from_labels"):
        return inner.prepare_decoder_input_ids_from_labels(labels=labels)
    start = labels.new_full((len(labels), 1), inner.config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], dim=1)
    return shifted.masked_fill_(shifted == IGNORED, inner.config.pad_token_id)


def _records(outputs: Outputs, batch: Batch) -> list[_Record]:
    records = token_records(outputs, batch)
    nothing = [None] * len(records)
    texts = (outputs["predictions"], batch.notes) if "predictions" in outputs else (nothing, nothing)
    return [
        _Record(**vars(record), prediction=text, references=of)
        for record, text, of in zip(records, *texts, strict=True)
    ]


def _columns(records: Sequence[_Record]) -> Columns:
    if records[0].prediction is None:
        return token_columns(records)
    label = [record.references[0] if record.references else None for record in records]
    return {**token_columns(records), "prediction": [record.prediction for record in records], "label": label}


def _score(records: Sequence[_Record]) -> dict[str, float]:
    scores = token_scores(records)
    predictions = [record.prediction for record in records if record.prediction is not None]
    if predictions:
        from ftscale.metrics.rouge import Rouge
        from ftscale.metrics.translation import TranslationScores

        references = [record.references for record in records]
        scores |= TranslationScores().compute(predictions=predictions, references=references)
        scores |= Rouge().compute(predictions=predictions, references=references)
    return scores
