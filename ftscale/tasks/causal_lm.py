"""Causal language modelling: the next token of plain text, of a completion, or of the model's turns in a chat."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from ftscale.config.schema import CausalLMSettings, GenerationSettings
from ftscale.data.chat import read_template, stop_ids
from ftscale.errors import UserError
from ftscale.models.attention import padded_attention
from ftscale.models.generate import check_options, generate, mean_until_end
from ftscale.models.lm_head import lm_loss, lm_target_losses
from ftscale.tasks import COLUMNS
from ftscale.tasks.base import Batch, Evaluator, Layout, Outputs, Row, Sample, model_inputs
from ftscale.tasks.causal_rows import EncodedRow, encode_row, encode_row_prompt, encode_text, row_column
from ftscale.tasks.collate import IGNORED, collate_tokens, pad_id
from ftscale.tasks.encode import length_limit, overlong_note
from ftscale.tasks.rows import text_of, where


class CausalLM:
    """The task of `task: causal_lm`. A target is one token.

    A sample's `labels` stand at their tokens, -100 outside the loss and at the first token, which nothing predicts. In
    a batch each stands one position earlier, where it is predicted, so that nothing shifts them again.
    """

    auto_class = "AutoModelForCausalLM"
    processor_class = "tokenizer"
    columns = COLUMNS["causal_lm"]
    optional = ("input", "tools")
    best_metric = ("loss", False)

    def __init__(self, settings: CausalLMSettings) -> None:
        """Raises UserError: an unreadable template, a bad pattern, settings that do not go together."""
        self.settings = settings
        self.template = read_template(settings.chat_template)
        _check_pattern(settings)
        check_options(settings.generate or GenerationSettings())

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """The chat template's text, so that a later change of its file changes nothing of what was trained."""
        return {} if self.template is None else {"chat_template": self.template}

    def model_settings(self) -> dict[str, Any]:
        """Set no field of the model's config: the output head over the vocabulary is the model's own."""
        return {}

    def prepare(self, rows: Sequence[Row], processor: Any, *, labelled: bool = True) -> list[Sample]:
        """One sample a row; with `join_texts`, blocks of `max_length` tokens of all these rows together.

        With `generate` a sample also has `prompt_ids` and `reference`. Without labels it is the prompt alone.
        """
        limit = length_limit(self.settings.max_length, processor)
        if not labelled:
            return [self._prompt_sample(row, processor, limit) for row in rows]
        if self.settings.join_texts:
            return _joined(rows, processor, limit)
        return [self._sample(row, processor, limit) for row in rows]

    def collator(self, processor: Any, *, layout: Layout, train: bool) -> Callable[[Sequence[Sample]], Batch]:
        """Return a collator that moves labels to where they are predicted; in evaluation it adds prompts."""
        return partial(_collate, pad=pad_id(processor), layout=layout, train=train)

    def count(self, batch: Batch) -> torch.Tensor:
        """Count the tokens that stand in the loss: () int64."""
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum the cross-entropy of the tokens in the loss, with the output head run on these alone: () float32."""
        return lm_loss(model, model_inputs(batch), batch["labels"])

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch, processor: Any) -> Outputs:
        """With labels, `losses`, `counts`, `correct`: (samples,), sums over each sample's targets, and `loss`: ().

        With prompts, `predictions`: a text each; without labels also `scores`: the mean log-probability of a generated
        token, or None where there is none.
        """
        outputs: Outputs = _sample_losses(model, batch) if "labels" in batch else {}
        if "prompts" not in batch:
            return outputs
        settings = self.settings.generate or GenerationSettings()
        stops = stop_ids(processor, template=self.template)
        with padded_attention(model):
            written, scores = _generate(
                model, batch["prompts"], processor, settings=settings, stops=stops, scored="labels" not in batch
            )
        if scores is not None:
            outputs["scores"] = scores
        outputs["predictions"] = [
            processor.decode([token for token in ids if token not in stops], skip_special_tokens=True)
            for ids in written
        ]
        return outputs

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss, perplexity and token accuracy, and of the texts that `generate` writes."""
        return Evaluator(_records, partial(_score, pattern=self.settings.answer_pattern))

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        text = None if self.settings.generate is None else "text"
        return list(_score([_Record(0.0, 1, 1, text, text)], pattern=None))

    def predictions(
        self, outputs: Outputs, batch: Batch, processor: Any, *, every: bool = False
    ) -> list[dict[str, Any]]:
        """The generated text, and the mean log-probability of its tokens."""
        return [
            {"prediction": text, "score": score}
            for text, score in zip(outputs["predictions"], outputs["scores"], strict=True)
        ]

    def _sample(self, row: Row, processor: Any, limit: int) -> Sample:
        encoded = encode_row(row, processor, targets=self.settings.targets, template=self.template)
        note = overlong_note(len(encoded.input_ids), row, limit=limit, too_long=self.settings.too_long)
        sample = _sample_of(encoded.input_ids[:limit], encoded.labels[:limit], note=note) | encoded.of_template
        return sample | self._generation(row, encoded, processor, limit) if self.settings.generate else sample

    def _prompt_sample(self, row: Row, processor: Any, limit: int) -> Sample:
        prompt = encode_row_prompt(row, processor, template=self.template)
        note = overlong_note(len(prompt), row, limit=limit, too_long=self.settings.too_long)
        prompt = prompt[-limit:]  # the model goes on from its end
        return {"input_ids": prompt, "length": len(prompt), "targets": 0, "note": note}

    def _generation(self, row: Row, encoded: EncodedRow, processor: Any, limit: int) -> Sample:
        """What evaluation generates from and compares with; no prompt where the last turn is not the model's."""
        if row_column(row) == "text":
            raise UserError(
                f"task.generate needs a turn or a completion to generate, but {where(row)} has `text` alone; set it to "
                "null, or give `prompt` and `completion`."
            )
        if encoded.reference is None:
            return {"prompt_ids": [], "reference": ""}
        from ftscale.metrics.text_match import answer

        if answer(encoded.reference, self.settings.answer_pattern) is None:
            raise UserError(
                f"task.answer_pattern = {self.settings.answer_pattern!r} must match each reference, but not that of "
                f"{where(row)}; mend the pattern or the row."
            )
        prompt = encode_row_prompt(row, processor, template=self.template)
        return {"prompt_ids": prompt[-limit:], "reference": encoded.reference}


@dataclass(frozen=True)
class _Record:
    """What evaluation keeps of a sample."""

    loss: float
    num_targets: int
    num_correct: int
    prediction: str | None = None
    """The generated text; None where there was nothing to generate."""
    reference: str | None = None


def _check_pattern(settings: CausalLMSettings) -> None:
    pattern = settings.answer_pattern
    if pattern is None:
        return
    if settings.generate is None:
        raise UserError(
            f"task.answer_pattern = {pattern!r} needs generated texts; set task.generate, or remove the pattern."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"task.answer_pattern = {pattern!r} is not a regular expression: {error}; mend it.") from error


# ---------------------------------------------------------------- samples and batches


def _sample_of(ids: list[int], labels: list[int], *, note: str) -> Sample:
    labels = [IGNORED, *labels[1:]]
    targets = sum(label != IGNORED for label in labels)
    return {
        "input_ids": ids,
        "labels": labels[: len(ids)],
        "length": len(ids),
        "targets": targets,
        "note": note if targets or note == "too_long" else "no_target",
    }


def _joined(rows: Sequence[Row], processor: Any, limit: int) -> list[Sample]:
    other = next((row for row in rows if row_column(row) != "text"), None)
    if other is not None:
        raise UserError(
            f"task.join_texts = true joins plain texts, but {where(other)} has `{row_column(other)}`; set it to false."
        )
    ids = list(chain.from_iterable(encode_text(text_of(row, "text"), processor) for row in rows))
    blocks = [ids[start : start + limit] for start in range(0, len(ids), limit)]
    return [_sample_of(block, block, note="") for block in blocks]


def _collate(samples: Sequence[Sample], *, pad: int, layout: Layout, train: bool) -> Batch:
    if "labels" in samples[0]:
        shifted = [{**sample, "labels": [*sample["labels"][1:], IGNORED]} for sample in samples]
        batch = collate_tokens(shifted, fill={"input_ids": pad, "labels": IGNORED}, layout=layout)
        if "prompt_ids" in samples[0] and not train:
            batch["prompts"] = [sample["prompt_ids"] for sample in samples]
            batch["references"] = [sample["reference"] for sample in samples]
        return batch
    batch = collate_tokens(samples, fill={"input_ids": pad}, layout=layout)
    batch["prompts"] = [sample["input_ids"] for sample in samples]
    return batch


# ---------------------------------------------------------------- losses of samples


def _sample_losses(model: torch.nn.Module, batch: Batch) -> Outputs:
    losses, correct = lm_target_losses(model, model_inputs(batch), batch["labels"])
    owners = _owners(batch)
    sums = torch.zeros(3, len(batch["row"]), device=losses.device)
    sums.index_add_(
        1, owners, torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32), correct.float()])
    )
    return {"losses": sums[0], "counts": sums[1].long(), "correct": sums[2].long(), "loss": sums[0].sum()}


def _owners(batch: Batch) -> torch.Tensor:
    """The sample, by its place in the batch, of each target: (targets,) int64, in row-major order of the labels."""
    rows, positions = (batch["labels"] != IGNORED).nonzero(as_tuple=True)
    if "cu_seq_lens_q" not in batch:
        return rows
    return torch.searchsorted(batch["cu_seq_lens_q"][1:].long(), positions, right=True)


# ---------------------------------------------------------------- generation


def _generate(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    processor: Any,
    *,
    settings: GenerationSettings,
    stops: Sequence[int],
    scored: bool,
) -> tuple[list[list[int]], list[float | None] | None]:
    """Tokens that the model writes after each prompt, the one that stopped it included; none after an empty prompt.

    `scored`: also the mean log-probability that these tokens had.
    """
    pad = pad_id(processor)
    asked = [list(prompt) for prompt in prompts if len(prompt)]
    most = settings.max_new_tokens if asked else 1
    asked = asked or [[pad]]  # under ZeRO-3 other ranks, which write, wait for this one's share of each layer
    longest = max(map(len, asked))
    device = next(model.parameters()).device
    inputs = {  # padded on the left, so that all go on at the same position
        "input_ids": torch.tensor([[pad] * (longest - len(ids)) + ids for ids in asked], device=device),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked], device=device),
    }
    written, chances = generate(
        model,
        inputs,
        settings,
        scored=scored,
        most=max(min(most, processor.model_max_length - longest), 1),
        eos_token_id=list(stops) or None,
        pad_token_id=pad,
    )
    texts = iter(_until_stop(ids, stops) for ids in written.tolist())
    scores = None
    if chances is not None:
        means = iter(mean_until_end(chances, written, stops))
        scores = [next(means) if len(prompt) else None for prompt in prompts]
    return [next(texts) if len(prompt) else [] for prompt in prompts], scores


def _until_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


# ---------------------------------------------------------------- scores


def _records(outputs: Outputs, batch: Batch) -> list[_Record]:
    sums = (outputs["losses"].tolist(), outputs["counts"].tolist(), outputs["correct"].tolist())
    records = [_Record(loss, count, correct) for loss, count, correct in zip(*sums, strict=True)]
    if "prompts" not in batch:
        return records
    texts = zip(batch["prompts"], outputs["predictions"], batch["references"], strict=True)
    return [
        replace(record, prediction=prediction, reference=reference) if len(prompt) else record
        for record, (prompt, prediction, reference) in zip(records, texts, strict=True)
    ]


def _score(records: Sequence[_Record], *, pattern: str | None) -> dict[str, float]:
    count = sum(record.num_targets for record in records)
    loss = math.fsum(record.loss for record in records) / count if count else math.nan
    scores = {
        "loss": loss,
        "perplexity": math.inf if loss > 700 else math.exp(loss),  # a double ends at exp(709)
        "token_accuracy": sum(record.num_correct for record in records) / count if count else math.nan,
    }
    pairs = [(record.prediction, record.reference) for record in records if record.reference is not None]
    if pairs:
        # here, since evaluate takes a tenth of a start to import, and most runs generate nothing
        from ftscale.metrics.rouge import Rouge
        from ftscale.metrics.text_match import ExactMatch

        predictions, references = map(list, zip(*pairs, strict=True))
        scores |= ExactMatch().compute(predictions=predictions, references=references, pattern=pattern)
        scores |= Rouge().compute(predictions=predictions, references=references)
    return scores
