"""Token classification: a tag for each word, learnt on the word's first piece and scored by entities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ftscale.config.schema import TokenClassificationSettings
from ftscale.errors import UserError, counted
from ftscale.metrics.sequence_tags import EntityScores
from ftscale.tasks import COLUMNS
from ftscale.tasks.base import Batch, Evaluator, Layout, Outputs, Row, Sample, model_inputs
from ftscale.tasks.collate import IGNORED, collate_tokens, pad_id, split_positions
from ftscale.tasks.encode import Encoded, encode, length_limit, overlong_note
from ftscale.tasks.labels import class_id, label_settings
from ftscale.tasks.rows import where, words_of
from ftscale.tasks.tag_schemes import OUTSIDE, complete_tags, recognise, to_iob2
from ftscale.tasks.written_lists import parse_list

LOST = -1  # place of a word that has no token: cut off, or made of nothing the tokenizer knows


class TokenClassification:
    """The task of `task: token_classification`.

    Labels of a batch are token-level, -100 everywhere but on the first piece of each word; those pieces are the
    targets. A word without a piece (cut off at `max_length`, or nothing to the tokenizer) is predicted as O, so that
    the scores are of all words.
    """

    auto_class = "AutoModelForTokenClassification"
    processor_class = "tokenizer"
    columns = COLUMNS["token_classification"]
    optional = ()
    best_metric = ("f1", True)

    def __init__(self, settings: TokenClassificationSettings) -> None:
        self.settings = settings
        self.ids = {label: number for number, label in enumerate(settings.labels or ())}
        self.numbered = dict(zip(settings.label_ids or (), settings.labels or (), strict=False))
        """Tags by the numbers that stand for them in the files."""
        if settings.labels is not None and OUTSIDE not in self.ids:
            raise UserError(f"task.labels = {list(settings.labels)} must hold O, the tag of words outside entities.")

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the tags in the order of their ids, from the settings or from what `fit` learned."""
        assert self.settings.labels is not None, "the training rows tell the labels: fit first"
        return self.settings.labels

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """The tag scheme, and O, B- and I- of every type. Raises UserError for impossible tag sequences."""
        tagged = [(where(row), self._tags(row)) for row in rows]
        scheme = recognise(tagged) if self.settings.scheme == "auto" else self.settings.scheme
        tags = {tag for place, sequence in tagged for tag in to_iob2(sequence, scheme=scheme, place=place)}
        return {"scheme": scheme, "labels": self.settings.labels or complete_tags(tags)}

    def model_settings(self) -> dict[str, Any]:
        """Name the tags in the model's config, by which its head gets one output a tag."""
        return label_settings(self.labels)

    def prepare(self, rows: Sequence[Row], processor: Any, *, labelled: bool = True) -> list[Sample]:
        """Samples with `places`: for each word the position of its first piece, or -1; and `tags`, their ids."""
        if not processor.is_fast:
            raise UserError(
                f"model.processor: {type(processor).__name__} cannot tell which word a token is from; token "
                "classification needs a model with a fast tokenizer (tokenizer.json)."
            )
        limit = length_limit(self.settings.max_length, processor)
        words = [words_of(row, "words") for row in rows]
        encoded = encode(processor, _spaced(words, processor), kind="words", limit=limit)
        samples = []
        for row, row_words, item in zip(rows, words, encoded, strict=True):
            sample = self._sample(row, item, num_words=len(row_words), limit=limit)
            samples.append(self._labelled(sample, row, row_words) if labelled else sample)
        return samples

    def collator(self, processor: Any, *, layout: Layout, train: bool) -> Callable[[Sequence[Sample]], Batch]:
        """Return a collator of tokens; outside training it adds where words stand, and their tags."""
        fill = {"input_ids": pad_id(processor), "token_type_ids": 0, "labels": IGNORED}
        return partial(_collate, fill=fill, layout=layout, references=not train)

    def count(self, batch: Batch) -> torch.Tensor:
        """Count the first pieces of words, which are the targets: () int64."""
        return (batch["labels"] != IGNORED).sum()

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum the cross-entropy of the first pieces' tags: () float32."""
        logits, labels = model(**model_inputs(batch)).logits, batch["labels"]
        chosen = labels != IGNORED
        return functional.cross_entropy(logits[chosen].float(), labels[chosen], reduction="sum")

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch, processor: Any) -> Outputs:
        """For each sample `tags`: ids, and `scores`: probabilities, one a word; with labels `losses` and `loss`."""
        logits = model(**model_inputs(batch)).logits.float()
        outputs: Outputs = {"tags": [], "scores": []}
        outputs["probabilities"] = logits.softmax(dim=-1)
        best = outputs["probabilities"].max(dim=-1)
        best_scores, best_tags = best.values.tolist(), best.indices.tolist()
        for reference, (row, span) in zip(batch["references"], split_positions(batch), strict=True):
            tags, scores = best_tags[row][span], best_scores[row][span]
            places = reference["places"]
            outputs["tags"].append([tags[place] if place != LOST else self.ids[OUTSIDE] for place in places])
            outputs["scores"].append([scores[place] for place in places if place != LOST])
        if "labels" in batch:
            labels = batch["labels"]
            losses = functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORED
            ).view(labels.shape)
            outputs["losses"] = [losses[row, span].sum().item() for row, span in split_positions(batch)]
            outputs["loss"] = losses.sum()
        return outputs

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the loss and of whole entities; a word without a piece counts as O."""
        return Evaluator(_records, self._score)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one made-up word of each tag."""
        return list(self._score([(0.0, 1, [number], [number]) for number in range(len(self.labels))]))

    def predictions(
        self, outputs: Outputs, batch: Batch, processor: Any, *, every: bool = False
    ) -> list[dict[str, Any]]:
        """Tags as `prediction`, `entities` (type, first word, word after the last), mean probability as `score`.

        With `every`, `scores`: for each word its tags' probabilities, None for a word without a piece.
        """
        rows: list[dict[str, Any]] = []
        for ids, scores in zip(outputs["tags"], outputs["scores"], strict=True):
            tags = [self.labels[number] for number in ids]
            score = sum(scores) / len(scores) if scores else None
            rows.append({"prediction": tags, "entities": _entities(tags), "score": score})
        if every:
            for row, scores in zip(rows, self._word_scores(outputs, batch), strict=True):
                row["scores"] = scores
        return rows

    def _word_scores(self, outputs: Outputs, batch: Batch) -> Iterator[list[dict[str, float] | None]]:
        """Of each sample, for each word the probability of each tag."""
        for reference, (row, span) in zip(batch["references"], split_positions(batch), strict=True):
            values = outputs["probabilities"][row][span].tolist()
            yield [
                dict(zip(self.labels, values[place], strict=True)) if place != LOST else None
                for place in reference["places"]
            ]

    def _sample(self, row: Row, encoded: Encoded, *, num_words: int, limit: int) -> Sample:
        places = [LOST] * num_words
        for position, word in enumerate(encoded.words):
            if word is not None and places[word] == LOST:
                places[word] = position
        return {
            **encoded.inputs,
            "places": places,
            "length": len(encoded.inputs["input_ids"]),
            "targets": 0,
            "note": overlong_note(encoded.length, row, limit=limit, too_long=self.settings.too_long),
        }

    def _labelled(self, sample: Sample, row: Row, words: Sequence[str]) -> Sample:
        tags = self._tags(row)
        if len(tags) != len(words):
            found = f"{counted(len(words), 'word')} against {counted(len(tags), 'tag')}"
            raise UserError(f"{where(row)}: {found}; give each word a tag.")
        assert self.settings.scheme != "auto", "the training rows tell the scheme: fit first"
        tags = to_iob2(tags, scheme=self.settings.scheme, place=where(row))
        ids = [class_id(row, "tags", tag, labels=self.labels, ids=self.ids) for tag in tags]
        labels = [IGNORED] * len(sample["input_ids"])
        for place, number in zip(sample["places"], ids, strict=True):
            if place != LOST:
                labels[place] = number
        targets = sum(place != LOST for place in sample["places"])
        note = sample["note"] if targets or sample["note"] == "too_long" else "no_target"
        return {**sample, "labels": labels, "tags": ids, "targets": targets, "note": note}

    def _tags(self, row: Row) -> list[str]:
        """The tags of a row; numbers are those of `task.labels`."""
        value = row.get("tags")
        tags = parse_list(value) if isinstance(value, str) else value
        if not isinstance(tags, (list, tuple)) or not any(_is_number(tag) for tag in tags):
            return words_of(row, "tags")
        if not self.numbered:
            raise UserError(
                f"{where(row)}: tags = {_short(tags)} are numbers; name the tags in their order in task.labels, e.g. "
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

    def _named(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.labels[number] for number in row] for row in rows]


def _is_number(tag: Any) -> bool:
    """Whether a tag is a whole number, also as text."""
    if isinstance(tag, str):
        return tag.isdecimal()
    return not isinstance(tag, bool) and (isinstance(tag, int) or (isinstance(tag, float) and tag.is_integer()))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _spaced(rows: Sequence[list[str]], tokenizer: Any) -> list[list[str]]:
    """Words as they stand in running text: byte-level tokenizers (GPT-2, Qwen2) have the space before a word in it."""
    if tokenizer.tokenize("a") == tokenizer.tokenize(" a"):
        return list(rows)
    return [[word if index == 0 else f" {word}" for index, word in enumerate(words)] for words in rows]


def _collate(samples: Sequence[Sample], *, fill: dict[str, int], layout: Layout, references: bool) -> Batch:
    batch = collate_tokens(samples, fill=fill, layout=layout)
    if references:
        batch["references"] = [
            {name: sample[name] for name in ("places", "tags") if name in sample} for sample in samples
        ]
    return batch


def _records(outputs: Outputs, batch: Batch) -> list[tuple[float, int, list[int], list[int]]]:
    targets = [sum(place != LOST for place in reference["places"]) for reference in batch["references"]]
    truth = [list(reference["tags"]) for reference in batch["references"]]
    return list(zip(outputs["losses"], targets, outputs["tags"], truth, strict=True))


def _entities(tags: Sequence[str]) -> list[dict[str, Any]]:
    """The entities that strict IOB2 finds, as the metric counts them."""
    from seqeval.scheme import IOB2, Tokens

    found = Tokens(list(tags), IOB2).entities if tags else []
    return [{"type": entity.tag, "start": entity.start, "end": entity.end} for entity in found]
