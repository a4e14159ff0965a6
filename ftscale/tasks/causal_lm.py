"""Causal language modelling: the next token of plain text, of a completion, or of the model's turns in a chat."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.base import GenerationSettings
from ftscale.config.tasks.causal_lm import CausalLMSettings
from ftscale.data.chat import normalize, read_template, stop_ids
from ftscale.data.sample import Sample
from ftscale.modalities.collate import IGNORED, Layout, collate_tokens, pad_id
from ftscale.modalities.encode import length_limit
from ftscale.modalities.text import Text
from ftscale.models.attention import padded_attention
from ftscale.models.generate import check_options, generate, mean_until_end
from ftscale.models.lm_head import lm_log_probs, lm_loss, lm_states, lm_target_logits, lm_target_losses
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
from ftscale.tasks.causal_rows import (
    EncodedRow,
    encode_row_prompt,
    encode_rows,
    encode_texts,
    is_completion,
    row_column,
)
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.positions import BY_POSITION, TARGETS_BY_POSITION
from ftscale.tasks.rows import text_of, where
from ftscale.tasks.states import mean_of_tokens
from ftscale.tasks.text_fit import encoder_problems, text_problems
from ftscale.tasks.token_pieces import marked
from ftscale.tasks.token_sums import (
    TokenRecord,
    sums_of_positions,
    sums_of_samples,
    sums_of_targets,
    token_columns,
    token_records,
    token_scores,
)


class CausalLM(Task):
    """The task of `task: causal_lm`. A target is one token.

    A sample's label stands at its tokens, -100 outside the loss and at the first token, which nothing predicts. In a
    batch each stands one position earlier, where it is predicted, so that nothing shifts them again. Where evaluation
    generates, a sample's note has `prompt_ids` and `reference`; a batch's notes are these, or the prompts' ids alone.
    """

    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    peft_type = "CAUSAL_LM"
    modality = Text()
    settings: CausalLMSettings

    def __init__(self, settings: CausalLMSettings, processor: Any = None) -> None:
        """Raises UserError: an unreadable template, a bad pattern, settings that do not go together."""
        super().__init__(settings, processor)
        self.template = read_template(settings.chat_template)
        _check_pattern(settings)
        check_options(settings.generate or GenerationSettings())
        if processor is not None and self.template is not None:
            processor.chat_template = self.template  # it is saved with the model that learned it

    @classmethod
    def written_out(cls, settings: CausalLMSettings) -> CausalLMSettings:
        return settings.model_copy(update={"chat_template": read_template(settings.chat_template)})

    @property
    def by_row(self) -> bool:  # type: ignore[override]
        """Not where texts are joined."""
        return not self.settings.join_texts

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """The chat template's text, so that a later change of its file changes nothing of what was trained."""
        return {} if self.template is None else {"chat_template": self.template}

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        """One sample a row; with `join_texts`, blocks of `max_length` tokens of all these rows together.

        Without labels it is the prompt alone.
        """
        limit = length_limit(self.settings.max_length, self.processor)
        if not labelled:
            return [self._prompt_sample(row, limit) for row in rows]
        if self.settings.join_texts:
            return _joined(rows, self.processor, limit)
        encoded = encode_rows(rows, self.processor, targets=self.settings.targets, template=self.template)
        return [self._sample(row, item, limit) for row, item in zip(rows, encoded, strict=True)]

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor)}
        if samples[0].label is None:
            inputs = collate_tokens([sample.inputs for sample in samples], fill=fill, layout=layout)
            prompts = [{"prompt_ids": sample.inputs["input_ids"]} for sample in samples]
            return Batch(inputs, row_numbers(samples), notes=prompts)
        shifted = [{**sample.inputs, "labels": [*sample.label[1:], IGNORED]} for sample in samples]
        inputs = collate_tokens(shifted, fill={**fill, "labels": IGNORED}, layout=layout)
        notes = [sample.note for sample in samples] if samples[0].note is not None and not train else []
        labels = inputs.pop("labels")
        return Batch(inputs, row_numbers(samples), labels, notes=notes)

    def count(self, batch: Batch) -> Counts:
        return {"loss": int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        weights = None if batch.weights is None else batch.weights[batch.owners(batch.labels != IGNORED)]
        return {"loss": lm_loss(model, batch.inputs, batch.labels, weights=weights)}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the last hidden states at the sample's tokens."""
        return mean_of_tokens(lm_states(model, batch.inputs), batch)

    def target_logits(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, slice]]:
        return lm_target_logits(model, batch.inputs, batch.labels)

    def log_probs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return sums_of_targets(batch, lm_log_probs(model, batch.inputs, batch.labels))

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """With labels, `losses`, `counts`, `correct`: (samples,), sums over each sample's targets.

        And `losses_by_position`, `counts_by_position`: (samples, stretches), see `sums_of_positions`.

        With prompts, `predictions`: a text each; without labels also `scores`: the mean log-probability of a generated
        token, or None where there is none.
        """
        outputs: Outputs = {}
        if batch.labels is not None:
            losses, correct = lm_target_losses(model, batch.inputs, batch.labels)
            outputs = sums_of_samples(batch, losses, correct)
            outputs["losses_by_position"], outputs["counts_by_position"] = sums_of_positions(batch, losses)
        if not batch.notes:
            return outputs
        stops, prompts = stop_ids(self.processor, template=self.template), [note["prompt_ids"] for note in batch.notes]
        settings = self.settings.generate or GenerationSettings()
        with padded_attention(model):
            written, scores = _generate(
                model, prompts, self.processor, settings=settings, stops=stops, scored=batch.labels is None
            )
        if scores is not None:
            outputs["scores"] = scores
        outputs["predictions"] = [
            self.processor.decode([token for token in ids if token not in stops], skip_special_tokens=True)
            for ids in written
        ]
        return outputs

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss, perplexity and token accuracy, and of the texts that `generate` writes."""
        return Evaluator(_records, partial(_score, pattern=self.settings.answer_pattern), columns=_columns)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        text = None if self.settings.generate is None else "text"
        return list(_score([_Record(0.0, 1, 1, text, text)], pattern=None))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The generated text, and the mean log-probability of its tokens."""
        return [
            {"prediction": text, "score": score}
            for text, score in zip(outputs["predictions"], outputs["scores"], strict=True)
        ]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """The tokens as text, cut where targets begin and end."""
        return marked(sample.inputs["input_ids"], [label != IGNORED for label in sample.label], self.processor)

    def target_texts(self, row: Row) -> list[str]:
        """A plain text, a completion, or the model's turns."""
        column = row_column(row)
        if column == "text":
            return [text_of(row, "text")]
        if is_completion(row, column):
            return [text_of(row, "completion")]
        return [message["content"] for message in normalize(row) if message["role"] == "assistant"]

    def model_problems(self, config: Config, model_config: Any) -> list[str]:
        """An encoder that is to write: each of its tokens sees the one that it is to predict."""
        return encoder_problems(config, model_config, setting="name")

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config)

    def reference(self, sample: Sample) -> str:
        return "" if sample.note is None else sample.note["reference"]

    def end_ids(self) -> list[int]:
        """As prediction has them."""
        return stop_ids(self.processor)

    def _sample(self, row: Row, encoded: EncodedRow, limit: int) -> Sample:
        truncated, drop = is_cut(len(encoded.input_ids), row, limit=limit, too_long=self.settings.too_long)
        sample = _sample_of(encoded.input_ids[:limit], encoded.labels[:limit], truncated=truncated, drop=drop)
        sample.facts |= encoded.of_template
        if self.settings.generate:
            sample.note = self._generation(row, encoded, limit)
        return sample

    def _prompt_sample(self, row: Row, limit: int) -> Sample:
        prompt = encode_row_prompt(row, self.processor, template=self.template)
        truncated, drop = is_cut(len(prompt), row, limit=limit, too_long=self.settings.too_long)
        prompt = prompt[-limit:]  # the model goes on from its end
        return Sample({"input_ids": prompt}, cost=len(prompt), counts={"loss": 0}, drop=drop, truncated=truncated)

    def _generation(self, row: Row, encoded: EncodedRow, limit: int) -> dict[str, Any]:
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
        prompt = encode_row_prompt(row, self.processor, template=self.template)
        return {"prompt_ids": prompt[-limit:], "reference": encoded.reference}


@dataclass(frozen=True)
class _Record(TokenRecord):
    """What evaluation keeps of a sample."""

    prediction: str | None = None
    """The generated text; None where there was nothing to generate."""
    reference: str | None = None
    by_position: tuple[tuple[float, int], ...] = ()
    """Of each stretch of positions, the sum over its targets and their number, to the last that has one."""


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


def _sample_of(ids: list[int], labels: list[int], *, truncated: bool = False, drop: str = "") -> Sample:
    labels = [IGNORED, *labels[1:]]
    targets = len(labels) - labels.count(IGNORED)
    return Sample(
        {"input_ids": ids},
        labels[: len(ids)],
        cost=len(ids),
        counts={"loss": targets},
        drop=drop or ("" if targets else "no_target"),
        truncated=truncated,
    )


def _joined(rows: Sequence[Row], processor: Any, limit: int) -> list[Sample]:
    other = next((row for row in rows if row_column(row) != "text"), None)
    if other is not None:
        raise UserError(
            f"task.join_texts = true joins plain texts, but {where(other)} has `{row_column(other)}`; set it to false."
        )
    ids = list(chain.from_iterable(encode_texts([text_of(row, "text") for row in rows], processor)))
    blocks = [ids[start : start + limit] for start in range(0, len(ids), limit)]
    return [replace(_sample_of(block, block), rows=(0, len(rows))) for block in blocks]


# ---------------------------------------------------------------- generation


def _generate(
    model: nn.Module,
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
    records = [_Record(**vars(record)) for record in token_records(outputs, batch)]
    if "losses_by_position" in outputs:  # not in those of a task that is made of this one
        sums, counts = outputs["losses_by_position"].tolist(), outputs["counts_by_position"].tolist()
        stretches = [tuple(zip(*of_sample, strict=True)) for of_sample in zip(sums, counts, strict=True)]
        records = [
            replace(record, by_position=_until_last(by_position))
            for record, by_position in zip(records, stretches, strict=True)
        ]
    if not batch.notes:
        return records
    return [
        replace(record, prediction=text, reference=note["reference"]) if len(note["prompt_ids"]) else record
        for record, note, text in zip(records, batch.notes, outputs["predictions"], strict=True)
    ]


def _until_last(stretches: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
    """Without those at the end that have no target."""
    used = [place for place, (_, number) in enumerate(stretches) if number]
    return stretches[: used[-1] + 1] if used else ()


def _columns(records: Sequence[_Record]) -> Columns:
    texts = ("prediction", [record.prediction for record in records]), ("label", [one.reference for one in records])
    columns = {**token_columns(records), **{name: of_rows for name, of_rows in texts if any(of_rows)}}
    if any(one.by_position for one in records):
        stretches = [one.by_position for one in records]
        columns[BY_POSITION] = [[loss / number if number else None for loss, number in row] for row in stretches]
        columns[TARGETS_BY_POSITION] = [[number for _, number in row] for row in stretches]
    return columns


def _score(records: Sequence[_Record], *, pattern: str | None) -> dict[str, float]:
    scores = token_scores(records)
    pairs = [(record.prediction, record.reference) for record in records if record.reference is not None]
    if pairs:
        # here, since evaluate takes a tenth of a start to import, and most runs generate nothing
        from ftscale.metrics.rouge import Rouge
        from ftscale.metrics.text_match import ExactMatch

        predictions, references = map(list, zip(*pairs, strict=True))
        scores |= ExactMatch().compute(predictions=predictions, references=references, pattern=pattern)
        scores |= Rouge().compute(predictions=predictions, references=references)
    return scores
