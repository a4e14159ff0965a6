"""Multiple choice: which of several choices is the right one for a question."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ftscale.config import Config
from ftscale.config.tasks.multiple_choice import MultipleChoiceSettings
from ftscale.data.missing import is_missing
from ftscale.data.sample import Sample
from ftscale.modalities.collate import Layout, collate_tokens, pad_id
from ftscale.modalities.encode import Encoded, encode, length_limit
from ftscale.modalities.text import TextChoices
from ftscale.models.choices import as_single_choices
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch, Counts, Outputs, Terms
from ftscale.tasks.choice_rows import FIRST, Choices, choices_of, label_form_of, no_choice, place_of
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import text_of
from ftscale.tasks.text_fit import text_problems

NO_CHOICE = torch.finfo(torch.float32).min
"""The logit where a sample has fewer choices than another: its probability is 0, and it gets no gradient."""
LENGTHS = "lengths"


class MultipleChoice(Task):
    """The task of `task: multiple_choice`. A row is one target.

    A sample is as many sequences as its row has choices, end to end: the question, or the context, with a choice each.
    `lengths` says how many tokens each has. Labels of a batch: (samples,) int64, the place of the right choice. A
    sample's note has the texts and names of its choices.
    """

    auto_class = "AutoModelForMultipleChoice"
    peft_type = None  # peft has no name for it; its plain model passes all inputs on
    modality = TextChoices()
    pools = True
    settings: MultipleChoiceSettings

    @property
    def best_metric(self) -> str:
        return "accuracy"

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """How labels say which choice is right."""
        return {} if self.settings.label_form is not None else {"label_form": label_form_of(rows)}

    def model_settings(self) -> dict[str, Any]:
        """A number for each sequence."""
        return {"num_labels": 1}

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config)

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        choices = [choices_of(row) for row in rows]
        pairs = [_pairs(row, of_row.texts) for row, of_row in zip(rows, choices, strict=True)]
        whole = self._encoded(pairs, limit=sys.maxsize)
        limit, samples, long = length_limit(self.settings.max_length, self.processor), [], []
        for row, of_row, sequences in zip(rows, choices, whole, strict=True):
            label = self._label(row, of_row) if labelled else None
            samples.append(self._sample(of_row, sequences, label))
            longest = max(item.length for item in sequences)
            samples[-1].truncated, samples[-1].drop = is_cut(longest, row, limit=limit, too_long=self.settings.too_long)
            if samples[-1].truncated:
                long.append(len(samples) - 1)
        if long:
            self._cut(samples, long, choices, pairs, limit)
        return samples

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor), "token_type_ids": 0}
        sequences = [sequence for sample in samples for sequence in _sequences(sample)]
        inputs = as_single_choices(collate_tokens(sequences, fill=fill, layout=layout))
        labels = None if samples[0].label is None else torch.tensor([sample.label for sample in samples])
        notes = [] if train else [sample.note for sample in samples]
        numbers = [len(sample.inputs[LENGTHS]) for sample in samples]
        return Batch(inputs, row_numbers(samples), labels, notes=notes, sequences=numbers)

    def count(self, batch: Batch) -> Counts:
        return {"loss": len(batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        return {"loss": weighted(_losses(_logits(model, batch), batch.labels), batch)}

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """`logits`: (samples, most choices) float32, the least number after the last; with labels also `losses`."""
        logits = _logits(model, batch)
        return {"logits": logits} | ({} if batch.labels is None else {"losses": _losses(logits, batch.labels)})

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss and accuracy."""
        return Evaluator(_records, _score)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one record made up for it."""
        return list(_score([(0.0, True)]))

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
        texts = [self.processor.decode(sequence["input_ids"]) for sequence in _sequences(sample)]
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

    def _encoded(self, pairs: Sequence[list[tuple[str, str]]], *, limit: int) -> list[list[Encoded]]:
        """The sequences of each row."""
        firsts = [first for of_row in pairs for first, _ in of_row]
        seconds = [second for of_row in pairs for _, second in of_row]
        encoded = iter(encode(self.processor, firsts, pairs=seconds, limit=limit, cut="first"))
        return [[next(encoded) for _ in of_row] for of_row in pairs]

    def _sample(self, choices: Choices, sequences: Sequence[Encoded], label: int | None) -> Sample:
        inputs: dict[str, list[int]] = {
            name: [token for item in sequences for token in item.inputs[name]] for name in sequences[0].inputs
        }
        return Sample(
            inputs | {LENGTHS: [len(item.inputs["input_ids"]) for item in sequences]},
            label,
            {"texts": choices.texts, "names": self._names(choices)},
            cost=len(inputs["input_ids"]),
            counts={"loss": int(label is not None)},
        )

    def _names(self, choices: Choices) -> list[str]:
        """What the choices are called in answers."""
        form = self.settings.label_form
        return [str(place + FIRST[form]) for place in choices.places] if form in FIRST else choices.names

    def _cut(
        self,
        samples: list[Sample],
        long: Sequence[int],
        choices: Sequence[Choices],
        pairs: Sequence[list[tuple[str, str]]],
        limit: int,
    ) -> None:
        """Cut the first texts of too long samples, so that question and choice stay whole; drop what leaves no room."""
        special = self.processor.num_special_tokens_to_add(pair=True)
        room = [limit - special - max(map(len, self._tokens([second for _, second in pairs[at]]))) for at in long]
        some = [at for at, tokens in zip(long, room, strict=True) if tokens > 0]
        cut = self._encoded([pairs[at] for at in some], limit=limit) if some else []
        for at, sequences in zip(some, cut, strict=True):
            shorter = self._sample(choices[at], sequences, samples[at].label)
            samples[at].inputs, samples[at].cost = shorter.inputs, shorter.cost
        for at in set(long).difference(some):
            samples[at].truncated, samples[at].drop = False, "choices_too_long"

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return self.processor(texts, add_special_tokens=False, verbose=False)["input_ids"]

    # ------------------------------------------------------------ answers

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


def _pairs(row: Row, choices: Sequence[str]) -> list[tuple[str, str]]:
    """Both texts of each sequence: context, then question and choice; without a context question, then choice."""
    question = text_of(row, "question").strip()
    context = row.get("context")
    if is_missing(context) or not text_of(row, "context").strip():
        return [(question, choice) for choice in choices]
    return [(text_of(row, "context").strip(), f"{question} {choice}".strip()) for choice in choices]


def _sequences(sample: Sample) -> list[dict[str, list[int]]]:
    """The tokens of each choice."""
    bounds = list(pairwise(accumulate(sample.inputs[LENGTHS], initial=0)))
    tokens = {name: values for name, values in sample.inputs.items() if name != LENGTHS}
    return [{name: values[start:stop] for name, values in tokens.items()} for start, stop in bounds]


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """(samples, most choices) float32."""
    logits = model(**batch.inputs).logits[:, 0].float()
    return pad_sequence(logits.split(batch.sequences), batch_first=True, padding_value=NO_CHOICE)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")


def _records(outputs: Outputs, batch: Batch) -> list[tuple[float, bool]]:
    """For each sample its loss, and whether its likeliest choice is the right one."""
    right = outputs["logits"].argmax(dim=-1) == batch.labels
    return list(zip(outputs["losses"].tolist(), right.tolist(), strict=True))


def _score(records: Sequence[tuple[float, bool]]) -> dict[str, float]:
    losses, right = zip(*records, strict=True)
    return {"loss": sum(losses) / len(losses), "accuracy": sum(right) / len(right)}
