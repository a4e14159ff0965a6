"""Token classification: a tag for each word, learnt on the word's first piece and scored by entities."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ftscale.base.errors import UserError, counted
from ftscale.config import Config
from ftscale.config.tasks.token_classification import TokenClassificationSettings
from ftscale.data.sample import Sample
from ftscale.data.values import short
from ftscale.metrics.sequence_tags import EntityScores
from ftscale.modalities.collate import IGNORED, Layout, collate_tokens, pad_id
from ftscale.modalities.encode import Encoded, encode, length_limit
from ftscale.modalities.text import Text
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
from ftscale.tasks.labels import class_id, label_settings
from ftscale.tasks.overlong import is_cut
from ftscale.tasks.rows import where, words_of
from ftscale.tasks.tag_schemes import OUTSIDE, complete_tags, recognise, to_iob2
from ftscale.tasks.text_fit import text_problems
from ftscale.tasks.written_lists import items_in, parse_list

WHITE_SPACE = re.compile(r"[ \t\r\n]+")  # not str.split(): words may hold a no-break space
LOST = -1  # place of a word that has no token: cut off, or made of nothing the tokenizer knows


class TokenClassification(Task):
    """The task of `task: token_classification`.

    Labels of a batch are token-level, -100 everywhere but on the first piece of each word; those pieces are the
    targets. A word without a piece (cut off at `max_length`, or nothing to the tokenizer) is predicted as O, so that
    the scores are of all words. A sample's note has `places`, for each word the position of its first piece or -1, and
    where it is labelled `tags`, their ids.
    """

    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    peft_type = "TOKEN_CLS"
    modality = Text()
    settings: TokenClassificationSettings

    def __init__(self, settings: TokenClassificationSettings, processor: Any = None) -> None:
        super().__init__(settings, processor)
        self.ids = {label: number for number, label in enumerate(settings.labels or ())}
        self.numbered = dict(zip(settings.label_ids or (), settings.labels or (), strict=False))
        """Tags by the numbers that stand for them in the files."""
        if settings.labels is not None and OUTSIDE not in self.ids:
            raise UserError(f"task.labels = {list(settings.labels)} must hold O, the tag of words outside entities.")

    @property
    def labels(self) -> tuple[str, ...]:
        """The tags, in the order of their numbers."""
        assert self.settings.labels is not None, "the training rows tell the labels: fit first"
        return self.settings.labels

    @property
    def best_metric(self) -> str:
        return "f1"

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """The tag scheme, and O, B- and I- of every type. Raises UserError for impossible tag sequences."""
        tagged = [(where(row), self._tags(row)) for row in map(_in_lists, rows)]
        scheme = recognise(tagged) if self.settings.scheme == "auto" else self.settings.scheme
        tags = {tag for place, sequence in tagged for tag in to_iob2(sequence, scheme=scheme, place=place)}
        return {"scheme": scheme, "labels": self.settings.labels or complete_tags(tags)}

    def model_settings(self) -> dict[str, Any]:
        """Name the tags in the model's config, by which its head gets one output a tag."""
        return label_settings(self.labels)

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return text_problems(self, config, model_config)

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        if not self.processor.is_fast:
            raise UserError(
                f"model.processor: {type(self.processor).__name__} cannot tell which word a token is from; token "
                "classification needs a model with a fast tokenizer (tokenizer.json)."
            )
        limit = length_limit(self.settings.max_length, self.processor)
        rows = [_in_lists(row) for row in rows] if labelled else rows
        words = [words_of(row, "words") for row in rows]
        encoded = encode(self.processor, _spaced(words, self.processor), kind="words", limit=limit)
        return [self._sample(*parts, limit, labelled) for parts in zip(rows, words, encoded, strict=True)]

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        tokens, fill = [sample.inputs for sample in samples], {"input_ids": pad_id(self.processor), "token_type_ids": 0}
        if samples[0].label is not None:
            tokens = [{**sample.inputs, "labels": sample.label} for sample in samples]
            fill["labels"] = IGNORED
        inputs = collate_tokens(tokens, fill=fill, layout=layout)
        labels = inputs.pop("labels", None)
        notes = [] if train else [sample.note for sample in samples]
        return Batch(inputs, row_numbers(samples), labels, notes=notes)

    def count(self, batch: Batch) -> Counts:
        return {"loss": int((batch.labels != IGNORED).sum())}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        logits, chosen = model(**batch.inputs).logits, batch.labels != IGNORED
        places = chosen.nonzero(as_tuple=True)  # a mask would ask the logits, which have no values in a plan
        scores, targets = logits[places].float(), batch.labels[places]
        if batch.weights is None:
            return {"loss": functional.cross_entropy(scores, targets, reduction="sum")}
        losses = functional.cross_entropy(scores, targets, reduction="none")
        return {"loss": (losses * batch.weights[batch.owners(chosen)]).sum()}

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """For each sample `tags`: ids, and `scores`: probabilities, one a word; with labels `losses`."""
        logits = model(**batch.inputs).logits.float()
        outputs: Outputs = {"tags": [], "scores": []}
        outputs["probabilities"] = logits.softmax(dim=-1)
        best = outputs["probabilities"].max(dim=-1)
        best_scores, best_tags = best.values.tolist(), best.indices.tolist()
        for note, (row, span) in zip(batch.notes, batch.spans, strict=True):
            tags, scores, places = best_tags[row][span], best_scores[row][span], note["places"]
            outputs["tags"].append([tags[place] if place != LOST else self.ids[OUTSIDE] for place in places])
            outputs["scores"].append([scores[place] for place in places if place != LOST])
        if batch.labels is not None:
            losses = functional.cross_entropy(
                logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=IGNORED
            ).view(batch.labels.shape)
            outputs["losses"] = [losses[row, span].sum().item() for row, span in batch.spans]
        return outputs

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the loss and of whole entities; a word without a piece counts as O."""
        return Evaluator(_records, self._score, columns=self._columns)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one made-up word of each tag."""
        return list(self._score([(0.0, 1, [number], [number]) for number in range(len(self.labels))]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """Tags as `prediction`, `entities` (type, first word, word after the last), mean probability as `score`.

        With `every`, `scores`: for each word its tags' probabilities, None for a word without a piece.
        """
        answers: list[Answer] = []
        for ids, scores in zip(outputs["tags"], outputs["scores"], strict=True):
            tags = [self.labels[number] for number in ids]
            score = sum(scores) / len(scores) if scores else None
            answers.append({"prediction": tags, "entities": _entities(tags), "score": score})
        if every:
            for answer, scores in zip(answers, self._word_scores(outputs, batch), strict=True):
                answer["scores"] = scores
        return answers

    @property
    def has_classes(self) -> bool:
        return True

    def answer_names(self, *, every: bool) -> list[str]:
        return ["prediction", "entities", "score", *(["scores"] if every else [])]

    def input_row(self, row: Row) -> Row:
        """Of plain text, words are what white space separates."""
        row = _in_lists(row)
        words = row.get("words")
        return {**row, "words": parse_list(words) or words.split()} if isinstance(words, str) else row

    def classes(self, sample: Sample) -> list[int]:
        return sample.note["tags"]

    def words(self, sample: Sample) -> list[str]:
        """As the model read them; "" for those that it did not."""
        ids, special = sample.inputs["input_ids"], set(self.processor.all_special_ids)
        starts = sorted(place for place in sample.note["places"] if place != LOST)
        ends = dict(zip(starts, [*starts[1:], len(ids)], strict=True))
        return [
            self.processor.decode([token for token in ids[place : ends[place]] if token not in special]).strip()
            if place != LOST
            else ""
            for place in sample.note["places"]
        ]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """Each word, and behind it its tag."""
        row = _in_lists(row)
        tags = zip(items_in(row["words"]), items_in(row["tags"]), strict=True)
        return [piece for word, tag in tags for piece in ((f"{word} ", False), (f"{tag} ", True))]

    def _word_scores(self, outputs: Outputs, batch: Batch) -> Iterator[list[dict[str, float] | None]]:
        """Of each sample, for each word the probability of each tag."""
        for note, (row, span) in zip(batch.notes, batch.spans, strict=True):
            values = outputs["probabilities"][row][span].tolist()
            yield [
                dict(zip(self.labels, values[place], strict=True)) if place != LOST else None
                for place in note["places"]
            ]

    def _sample(self, row: Row, words: Sequence[str], encoded: Encoded, limit: int, labelled: bool) -> Sample:
        places = [LOST] * len(words)
        for position, word in enumerate(encoded.words):
            if word is not None and places[word] == LOST:
                places[word] = position
        truncated, drop = is_cut(encoded.length, row, limit=limit, too_long=self.settings.too_long)
        sample = Sample(
            encoded.inputs,
            note={"places": places},
            cost=len(encoded.inputs["input_ids"]),
            counts={"loss": 0},
            drop=drop,
            truncated=truncated,
        )
        if not truncated:
            sample.facts["lost"] = places.count(LOST)
        return self._labelled(sample, row, words) if labelled else sample

    def _labelled(self, sample: Sample, row: Row, words: Sequence[str]) -> Sample:
        tags, places = self._tags(row), sample.note["places"]
        if len(tags) != len(words):
            found = f"{counted(len(words), 'word')} against {counted(len(tags), 'tag')}"
            raise UserError(f"{where(row)}: {found}; give each word a tag.")
        assert self.settings.scheme != "auto", "the training rows tell the scheme: fit first"
        tags = to_iob2(tags, scheme=self.settings.scheme, place=where(row))
        ids = [class_id(row, "tags", tag, labels=self.labels, ids=self.ids) for tag in tags]
        labels = [IGNORED] * len(sample.inputs["input_ids"])
        for place, number in zip(places, ids, strict=True):
            if place != LOST:
                labels[place] = number
        targets = len(places) - places.count(LOST)
        sample.label, sample.note["tags"], sample.counts = labels, ids, {"loss": targets}
        sample.drop = sample.drop or ("" if targets else "no_target")
        return sample

    def _tags(self, row: Row) -> list[str]:
        """The tags of a row; numbers are those of `task.labels`."""
        value = row.get("tags")
        tags = parse_list(value) if isinstance(value, str) else value
        if not isinstance(tags, (list, tuple)) or not any(_is_number(tag) for tag in tags):
            return words_of(row, "tags")
        if not self.numbered:
            raise UserError(
                f"{where(row)}: tags = {short(tags)} are numbers; name the tags in their order in task.labels, e.g. "
                "[O, B-PER, I-PER]."
            )
        unknown = next((tag for tag in tags if not _is_number(tag) or int(tag) not in self.numbered), None)
        if unknown is not None:
            raise UserError(
                f"{where(row)}: tag {unknown!r} is none of the numbers {min(self.numbered)} to {max(self.numbered)} of "
                "task.labels; mend the row, or name all tags."
            )
        return [self.numbered[int(tag)] for tag in tags]

    def _score(self, records: Sequence[tuple[float, int, Sequence[int], Sequence[int]]]) -> dict[str, float]:
        losses, targets, guesses, truth = zip(*records, strict=True)
        scores = EntityScores().compute(predictions=self._named(guesses), references=self._named(truth))
        return {"loss": sum(losses) / max(1, sum(targets)), **scores}

    def _columns(self, records: Sequence[tuple[float, int, Sequence[int], Sequence[int]]]) -> Columns:
        losses, targets, guesses, truth = zip(*records, strict=True)
        means = [loss / count if count else None for loss, count in zip(losses, targets, strict=True)]
        tags = {"prediction": self._named(guesses), "label": self._named(truth)}
        return {"loss": means, "targets": list(targets), **tags}

    def _named(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.labels[number] for number in row] for row in rows]


def _in_lists(row: Row) -> Row:
    """A row whose words and tags are texts with blanks between them, with both as lists; any other row as it is."""
    words, tags = row.get("words"), row.get("tags")
    if not isinstance(words, str) or not isinstance(tags, str):
        return row
    if parse_list(tags) is not None or any(isinstance(item, str) for item in parse_list(words) or ()):
        return row  # texts of lists
    return {**row, "words": _split(words), "tags": _split(tags)}


def _split(text: str) -> list[str]:
    return [word for word in WHITE_SPACE.split(text) if word]


def _is_number(tag: Any) -> bool:
    """Whether a tag is a whole number, also as text."""
    if isinstance(tag, str):
        return tag.isdecimal()
    return not isinstance(tag, bool) and (isinstance(tag, int) or (isinstance(tag, float) and tag.is_integer()))


def _spaced(rows: Sequence[list[str]], tokenizer: Any) -> list[list[str]]:
    """Words as they stand in running text: byte-level tokenizers (GPT-2, Qwen2) have the space before a word in it."""
    if tokenizer.tokenize("a") == tokenizer.tokenize(" a"):
        return list(rows)
    return [[word if index == 0 else f" {word}" for index, word in enumerate(words)] for words in rows]


def _records(outputs: Outputs, batch: Batch) -> list[tuple[float, int, list[int], list[int]]]:
    targets = [sum(place != LOST for place in note["places"]) for note in batch.notes]
    truth = [list(note["tags"]) for note in batch.notes]
    return list(zip(outputs["losses"], targets, outputs["tags"], truth, strict=True))


def _entities(tags: Sequence[str]) -> list[dict[str, Any]]:
    """The entities that strict IOB2 finds, as the metric counts them."""
    from seqeval.scheme import IOB2, Tokens

    found = Tokens(list(tags), IOB2).entities if tags else []
    return [{"type": entity.tag, "start": entity.start, "end": entity.end} for entity in found]
