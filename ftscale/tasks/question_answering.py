"""Extractive question answering: where in a context the answer to a question begins and ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.question_answering import QuestionAnsweringSettings
from ftscale.data.sample import Sample
from ftscale.metrics.answers import AnswerScores, answer_f1
from ftscale.modalities.collate import IGNORED, Layout, collate_tokens, pad_id
from ftscale.modalities.encode import length_limit
from ftscale.modalities.text import Text
from ftscale.models.probing import logits_of
from ftscale.tasks.answer_rows import GivenAnswer, answers_of
from ftscale.tasks.answer_spans import Window, best_answer, nearest_place, windows
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import text_of
from ftscale.tasks.text_fit import text_problems

NOTHING: Answer = {"prediction": "", "score": None, "start": None, "answer": ""}


class QuestionAnswering(Task):
    """The task of `task: question_answering`.

    Samples are windows of a row's context, each behind the question. Labels of a batch: (samples, 2) int64, the
    positions of the answer's first and last token in the sample, of its beginning-of-sequence token where the answer is
    not in this window; both are targets. A sample's note has what makes an answer of two positions.
    """

    auto_class = "AutoModelForQuestionAnswering"
    pipeline_tag = "question-answering"
    peft_type = None  # peft 0.21's PeftModelForQuestionAnswering loses token_type_ids and position_ids
    modality = Text()
    by_row = False
    settings: QuestionAnsweringSettings

    @property
    def best_metric(self) -> str:
        return "f1"

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Whether a question may have no answer."""
        if self.settings.no_answer is not None:
            return {}
        return {"no_answer": not all(answers_of(row) for row in rows)}

    def tuned(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """The threshold that is best on the evaluation rows."""
        best = scores.get("best_f1_threshold")
        is_number = isinstance(best, (int, float)) and self.settings.no_answer_threshold is None
        return {"no_answer_threshold": best} if is_number else {}

    def model_settings(self) -> dict[str, Any]:
        """A start and an end for each token."""
        return {"num_labels": 2}

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return [*text_problems(self, config, model_config), *self._room_problems()]

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        if not self.processor.is_fast:
            raise UserError(
                f"model.processor: {type(self.processor).__name__} cannot tell which characters a token stands for; "
                "question answering needs a model with a fast tokenizer (tokenizer.json)."
            )
        if problems := self._room_problems():
            raise UserError(*problems)
        questions, cuts = self._questions(rows)
        found = windows(
            self.processor,
            questions,
            [text_of(row, "context") for row in rows],
            limit=length_limit(self.settings.max_length, self.processor),
            stride=self.settings.stride,
        )
        samples: list[Sample] = []
        for number, (row, (truncated, drop), of_row) in enumerate(zip(rows, cuts, found, strict=True)):
            made = self._samples(row, of_row, labelled=labelled)
            for sample in made:
                sample.rows, sample.truncated, sample.drop = (number, number + 1), truncated, sample.drop or drop
            samples += made
        return samples

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        fill = {"input_ids": pad_id(self.processor), "token_type_ids": 0}
        inputs = collate_tokens([sample.inputs for sample in samples], fill=fill, layout=layout)
        labels = None if samples[0].label is None else torch.tensor([sample.label for sample in samples])
        notes = [] if train else [sample.note for sample in samples]
        return Batch(inputs, row_numbers(samples), labels, notes=notes)

    def count(self, batch: Batch) -> Counts:
        return {"loss": int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        return {"loss": weighted(_losses(_logits(model, batch), batch.labels), batch)}

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """`starts` and `ends`: for each sample its logits, (tokens,) float32; with labels also `losses`: (samples,)."""
        logits = _logits(model, batch)
        outputs: Outputs = {"starts": [], "ends": []}
        for sample, (_, span) in zip(logits, batch.spans, strict=True):
            length = span.stop - span.start
            outputs["starts"].append(sample[0, :length])
            outputs["ends"].append(sample[1, :length])
        return outputs | ({} if batch.labels is None else {"losses": _losses(logits, batch.labels)})

    def evaluator(self) -> Evaluator:
        """Return an evaluator of whole rows: the answer of a row is the best one of its windows."""
        return Evaluator(self._records, self._score, join=_rows, firsts=_firsts, columns=self._columns)

    def metric_names(self) -> list[str]:
        record = (0.0, 2, {**NOTHING, "score": 0.0, "no_answer": 0.0})
        return list(self._score([(*record, ["yes"]), (*record, [])]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The answer's text as `prediction`, its logits' sum as `score`, and the character where it starts.

        With `no_answer` also `answer`, the text that is given if one is, and `no_answer`, the score of having none.
        """
        return [
            self._decided(self._best(*parts))
            for parts in zip(outputs["starts"], outputs["ends"], batch.notes, strict=True)
        ]

    def answer_names(self, *, every: bool) -> list[str]:
        return ["prediction", "score", "start", *(["answer", "no_answer"] if self.settings.no_answer else [])]

    def merge(self, answers: Sequence[Answer]) -> Answer:
        """The answer with the highest score; that there is none has the lowest of its scores."""
        return self._decided(_merged(answers))

    def show(self, row: Row, sample: Sample) -> Pieces:
        """A window as its tokens, the answer marked."""
        ids, (start, end) = sample.inputs["input_ids"], sample.label
        parts = ((ids[:start], False), (ids[start : end + 1], True), (ids[end + 1 :], False))
        return [(self.processor.decode(part), is_target) for part, is_target in parts if part]

    def _questions(self, rows: Sequence[Row]) -> tuple[list[str], list[tuple[bool, str]]]:
        """The questions, cut to `max_question` tokens, and for each whether it was cut, and why it is dropped."""
        texts, limit = [text_of(row, "question").strip() for row in rows], self.settings.max_question
        encoded = self.processor(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        cuts = [
            is_cut(len(spans), row, limit=limit, too_long=self.settings.too_long, setting="max_question")
            for row, spans in zip(rows, encoded["offset_mapping"], strict=True)
        ]
        shorter = [
            text[: spans[limit - 1][1]] if len(spans) > limit else text
            for text, spans in zip(texts, encoded["offset_mapping"], strict=True)
        ]
        return shorter, cuts

    def _room_problems(self) -> list[str]:
        """That a window has no room for new tokens of the context."""
        settings, limit = self.settings, length_limit(self.settings.max_length, self.processor)
        room = limit - settings.max_question - self.processor.num_special_tokens_to_add(pair=True)
        if room > settings.stride:
            return []
        return [
            f"task.stride = {settings.stride} must be less than the {room} tokens that a sample of {limit} has for the "
            f"context beside a question of task.max_question = {settings.max_question}; lower one of the two, or raise "
            "task.max_length."
        ]

    def _samples(self, row: Row, of_row: Sequence[Window], *, labelled: bool) -> list[Sample]:
        context, answers = text_of(row, "context"), answers_of(row) if labelled else []
        labels = _labels(of_row, context, answers)
        return [
            Sample(
                window.inputs,
                label if labelled else None,
                _note(window, context, number, [text for text, _ in answers]),
                cost=len(window.inputs["input_ids"]),
                counts={"loss": 2 * int(labelled)},
                drop="" if label else "answer_not_found",
            )
            for number, (window, label) in enumerate(zip(of_row, labels, strict=True))
        ]

    def _best(self, starts: Tensor, ends: Tensor, note: dict[str, Any]) -> Answer:
        """The likeliest answer of a window, and the score of there being none."""
        found = best_answer(
            starts.cpu().numpy(),
            ends.cpu().numpy(),
            first=note["first"],
            count=len(note["begins"]),
            own=(note["own"][0], note["own"][1]),
            n_best=self.settings.n_best,
            longest=self.settings.max_answer,
        )
        none = float(starts[note["null"]] + ends[note["null"]])
        if found is None:
            return {**NOTHING, "no_answer": none}
        begin, stop = note["begins"][found.first], note["stops"][found.last]
        text = note["text"][begin - note["begins"][0] : stop - note["begins"][0]]
        return {"prediction": text, "score": found.score, "start": begin, "answer": text, "no_answer": none}

    def _decided(self, answer: Answer) -> Answer:
        """An answer, or none where that is likelier."""
        if self.settings.no_answer:
            given = answer["score"] is not None and _margin(answer) <= (self.settings.no_answer_threshold or 0.0)
            answer = {**answer, "prediction": answer["answer"] if given else ""}
        return {name: answer[name] for name in self.answer_names(every=False)}

    def _records(self, outputs: Outputs, batch: Batch) -> list[tuple[Any, ...]]:
        """For each window its place in the row, its loss and targets, its best answer, and the answers that count."""
        losses, targets = outputs["losses"].tolist(), (batch.labels != IGNORED).sum(dim=-1).tolist()
        best = [self._best(*parts) for parts in zip(outputs["starts"], outputs["ends"], batch.notes, strict=True)]
        return [
            (note["window"], *record, note["answers"])
            for note, *record in zip(batch.notes, losses, targets, best, strict=True)
        ]

    def _score(self, records: Sequence[tuple[float, int, Answer, list[str]]]) -> dict[str, float]:
        losses, targets, answers, wanted = zip(*records, strict=True)
        extra: dict[str, Any] = {"language": self.settings.language}
        if self.settings.no_answer:
            extra |= {"answers": [answer["answer"] for answer in answers], "margins": [_margin(one) for one in answers]}
        given = [self._decided(answer)["prediction"] for answer in answers]
        scores = AnswerScores().compute(predictions=given, references=list(wanted), **extra)
        return {"loss": sum(losses) / max(1, sum(targets)), **scores}

    def _columns(self, records: Sequence[tuple[float, int, Answer, list[str]]]) -> Columns:
        losses, targets, answers, wanted = zip(*records, strict=True)
        given = [self._decided(answer) for answer in answers]
        return {
            "loss": [loss / count if count else None for loss, count in zip(losses, targets, strict=True)],
            "targets": list(targets),
            "prediction": [answer["prediction"] for answer in given],
            "label": [texts[0] if texts else "" for texts in wanted],
            "score": [answer["score"] for answer in given],
            "f1": [
                answer_f1(answer["prediction"], texts, language=self.settings.language)
                for answer, texts in zip(given, wanted, strict=True)
            ],
        }


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    """(samples, 2, longest) float32: of start and end, the least number at padding."""
    logits = logits_of(model(**batch.inputs)).float()
    samples = [logits[row, span] for row, span in batch.spans]
    return pad_sequence(samples, batch_first=True, padding_value=torch.finfo(torch.float32).min).transpose(1, 2)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(samples,): the cross-entropy of start and end, summed."""
    losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view(labels.shape).sum(dim=-1)


def _labels(of_row: Sequence[Window], context: str, answers: Sequence[GivenAnswer]) -> list[list[int]]:
    """For each window the positions of the answer, of the first one that the context has; none where it has none."""
    places = (nearest_place(text, context, near) for text, near in answers)
    place = next((place for place in places if place is not None), None)
    if place is None and answers:
        return [[] for _ in of_row]
    return [list(window.positions(place)) if place else [window.null, window.null] for window in of_row]


def _merged(answers: Sequence[Answer]) -> Answer:
    """Of the answers of a row's windows the best one, with the lowest score of there being none."""
    best = max(answers, key=lambda answer: -torch.inf if answer["score"] is None else answer["score"])
    return {**best, "no_answer": min(answer["no_answer"] for answer in answers)} if "no_answer" in best else best


def _rows(records: Sequence[tuple[Any, ...]]) -> list[tuple[float, int, Answer, list[str]]]:
    """For each row the sums of its windows' losses and targets, its best answer, and the answers that count."""
    rows: list[list[tuple[Any, ...]]] = []
    for record in records:
        if record[0] == 0:
            rows.append([])
        rows[-1].append(record)
    joined = []
    for of_row in rows:
        _, losses, targets, answers, wanted = zip(*of_row, strict=True)
        joined.append((sum(losses), sum(targets), _merged(answers), wanted[0]))
    return joined


def _firsts(records: Sequence[tuple[Any, ...]]) -> list[int]:
    """The places of rows' first windows."""
    return [place for place, record in enumerate(records) if record[0] == 0]


def _note(window: Window, context: str, number: int, answers: Sequence[str]) -> dict[str, Any]:
    """What makes an answer of two positions, and the answers that count."""
    begins, stops = [begin for begin, _ in window.offsets], [stop for _, stop in window.offsets]
    return {
        "window": number,
        "first": window.first,
        "null": window.null,
        "own": list(window.own),
        "begins": begins,
        "stops": stops,
        "text": context[begins[0] : stops[-1]] if begins else "",
        "answers": list(answers),
    }


def _margin(answer: Answer) -> float:
    """By how much having no answer goes before the answer."""
    return answer["no_answer"] - (torch.finfo(torch.float32).min if answer["score"] is None else answer["score"])
