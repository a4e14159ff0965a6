"""Multiple choice: which of several choices is the right one for a question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES as WITH_HEAD

from ftscale.config import Config
from ftscale.config.tasks.multiple_choice import MultipleChoiceSettings
from ftscale.data.missing import is_missing
from ftscale.data.sample import Sample
from ftscale.modalities.collate import Layout
from ftscale.modalities.encode import Encoded, length_limit
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
from ftscale.tasks.choice_rows import FIRST, Choices, choices_of, label_form_of, no_choice, place_of
from ftscale.tasks.choice_scoring import SCORINGS, Pair
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import text_of
from ftscale.tasks.sequences import LENGTHS, joined, sequences_of
from ftscale.tasks.text_fit import encoder_problems, text_problems

RIGHT = "right"
"""In a batch's `extra`, where its labels are tokens: (samples,) int64, the place of the right choice."""


class MultipleChoice(Task):
    """The task of `task: multiple_choice`. A row is one target.

    A sample is as many sequences as its row has choices, end to end: the question, or the context, with a choice each.
    `lengths` says how many tokens each has. Labels of a batch: (samples,) int64, the place of the right choice; where
    likelihood scores, the tokens of the choices, where they are predicted. A sample's note has the texts and names of
    its choices.
    """

    pipeline_tag = "multiple-choice"
    settings: MultipleChoiceSettings

    def __init__(self, settings: MultipleChoiceSettings, processor: Any = None) -> None:
        super().__init__(settings, processor)
        self.scoring = SCORINGS[settings.scoring]
        self.auto_class, self.peft_type = self.scoring.auto_class, self.scoring.peft_type
        self.modality, self.pools = self.scoring.modality, self.scoring.pools

    @property
    def brings_head(self) -> bool:
        return self.scoring.brings_head

    @property
    def best_metric(self) -> str:
        return "accuracy"

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """How labels say which choice is right."""
        return {} if self.settings.label_form is not None else {"label_form": label_form_of(rows)}

    def model_settings(self) -> dict[str, Any]:
        """Of a head, one number for each sequence."""
        return {"num_labels": 1} if self.brings_head else {}

    def model_problems(self, config: Config, model_config: Any) -> list[str]:
        """An encoder that is to go on from a question, and a decoder that is to have a head over it."""
        if not self.brings_head:
            return encoder_problems(config, model_config, setting="scoring")
        kind = model_config.model_type
        if kind in WITH_HEAD or kind not in DECODERS:
            return []
        return [
            f"task.scoring = head needs a model with a head for multiple choice, and model.name = "
            f"{config.model.name!r} is a decoder without one in transformers ({kind}); set task.scoring: likelihood, "
            "or name an encoder."
        ]

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config)

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        choices = [choices_of(row) for row in rows]
        pairs = [self._pairs(row, of_row.texts) for row, of_row in zip(rows, choices, strict=True)]
        encoded = iter(self.scoring.encode([pair for of_row in pairs for pair in of_row], self.processor))
        samples = []
        for row, of_row, of_pairs in zip(rows, choices, pairs, strict=True):
            label = self._label(row, of_row) if labelled else None
            samples.append(self._sample(row, of_row, of_pairs, list(islice(encoded, len(of_pairs))), label))
        return samples

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        sequences = [sequence for sample in samples for sequence in sequences_of(sample)]
        inputs, tokens = self.scoring.collate(sequences, self.processor, layout=layout)
        right = None if samples[0].label is None else torch.tensor([sample.label for sample in samples])
        extra = self.scoring.scales([sample.note["texts"] for sample in samples])
        if tokens is not None and right is not None:
            extra[RIGHT] = right
        return Batch(
            inputs,
            row_numbers(samples),
            right if tokens is None else tokens,
            extra=extra,
            notes=[] if train else [sample.note for sample in samples],
            sequences=[len(sample.inputs[LENGTHS]) for sample in samples],
        )

    def count(self, batch: Batch) -> Counts:
        return {"loss": len(batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        return {"loss": weighted(_losses(self.scoring.scores(model, batch), self._right(batch)), batch)}

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """`logits`: (samples, most choices) float32, the least number after the last; with labels also `losses`."""
        logits, right = self.scoring.scores(model, batch), self._right(batch)
        return {"logits": logits} | ({} if right is None else {"losses": _losses(logits, right)})

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss and accuracy."""
        return Evaluator(self._records, _score, columns=_columns)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        return list(_score([_Record(0.0, True, "", "", 1.0)]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The likeliest choice's text, its probability among the choices, and as `choice` how labels would write it.

        With `every` also the `scores` of all, by their names.
        """
        probabilities = outputs["logits"].softmax(dim=-1).tolist()
        return [self._answer(*parts, every=every) for parts in zip(probabilities, batch.notes, strict=True)]

    @property
    def has_classes(self) -> bool:
        """Whether `scores` can be given: those of a row's own choices."""
        return True

    def answer_names(self, *, every: bool) -> list[str]:
        return ["prediction", "score", "choice", *(["scores"] if every else [])]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """The sequences as their tokens, a line each, the right one marked."""
        texts = [self.processor.decode(sequence["input_ids"]) for sequence in sequences_of(sample)]
        lines = [[(text, place == sample.label), ("\n", False)] for place, text in enumerate(texts)]
        return [piece for line in lines for piece in line][:-1]

    # ------------------------------------------------------------ samples

    def _label(self, row: Row, choices: Choices) -> int:
        form = self.settings.label_form
        assert form is not None, "the training rows tell how labels are written: fit first"
        place = place_of(row, choices, form)
        if place is None:
            raise no_choice(row, choices, f"task.label_form = {form}")
        return place

    def _pairs(self, row: Row, choices: Sequence[str]) -> list[Pair]:
        context = "" if is_missing(row.get("context")) else text_of(row, "context").strip()
        return self.scoring.pairs(context, text_of(row, "question").strip(), choices)

    def _sample(
        self, row: Row, choices: Choices, pairs: list[Pair], sequences: Sequence[Encoded], label: int | None
    ) -> Sample:
        limit = length_limit(self.settings.max_length, self.processor)
        longest = max(item.length for item in sequences)
        truncated, drop = is_cut(longest, row, limit=limit, too_long=self.settings.too_long)
        if truncated:  # the choice stays whole
            cut = self.scoring.cut(pairs, sequences, self.processor, limit=limit)
            sequences, truncated, drop = cut or sequences, bool(cut), "" if cut else "choices_too_long"
        inputs = joined([item.inputs for item in sequences])
        return Sample(
            inputs,
            label,
            {"texts": choices.texts, "names": self._names(choices)},
            cost=len(inputs["input_ids"]),
            counts={"loss": int(label is not None)},
            drop=drop,
            truncated=truncated,
        )

    def _names(self, choices: Choices) -> list[str]:
        """What the choices are called in answers."""
        form = self.settings.label_form
        return [str(place + FIRST[form]) for place in choices.places] if form in FIRST else choices.names

    def _right(self, batch: Batch) -> Any:
        """(samples,) int64, the places of the right choices; None where they are not known."""
        return batch.labels if self.brings_head else batch.extra.get(RIGHT)

    # ------------------------------------------------------------ answers

    def _records(self, outputs: Outputs, batch: Batch) -> list[_Record]:
        logits, labels = outputs["logits"], self._right(batch)
        guesses, chances = logits.argmax(dim=-1), logits.softmax(dim=-1).amax(dim=-1)
        columns = (column.tolist() for column in (outputs["losses"], guesses, labels, chances))
        return [
            _Record(loss, guess == label, note["texts"][guess], note["texts"][label], chance)
            for loss, guess, label, chance, note in zip(*columns, batch.notes, strict=True)
        ]

    def _answer(self, probabilities: list[float], note: dict[str, list[str]], *, every: bool) -> Answer:
        scores = dict(enumerate(probabilities[: len(note["texts"])]))
        best = max(scores, key=lambda place: scores[place])
        name = note["names"][best]
        answer = {
            "prediction": note["texts"][best],
            "score": scores[best],
            "choice": int(name) if self.settings.label_form in FIRST else name,
        }
        return {**answer, "scores": dict(zip(note["names"], scores.values(), strict=True))} if every else answer


@dataclass(frozen=True)
class _Record:
    """What evaluation keeps of a sample."""

    loss: float
    is_right: bool
    """Whether its likeliest choice is the right one."""
    prediction: str
    """The text of the likeliest choice."""
    label: str
    """That of the right one."""
    score: float
    """How likely the likeliest is among the choices."""


def _losses(logits: Tensor, right: Tensor) -> Tensor:
    return functional.cross_entropy(logits, right, reduction="none")


def _score(records: Sequence[_Record]) -> dict[str, float]:
    losses, right = [record.loss for record in records], [record.is_right for record in records]
    return {"loss": sum(losses) / len(losses), "accuracy": sum(right) / len(right)}


def _columns(records: Sequence[_Record]) -> Columns:
    return {
        "loss": [record.loss for record in records],
        "prediction": [record.prediction for record in records],
        "label": [record.label for record in records],
        "score": [record.score for record in records],
    }
