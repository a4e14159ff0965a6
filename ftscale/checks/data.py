"""What the data looks like when it is prepared: text with its targets marked, lengths, dropped rows, repetitions."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

import numpy as np

from ftscale.checks.characters import lost_text, writes_tokens
from ftscale.checks.sample import DataSample, Part
from ftscale.config.schema import CausalLMSettings, ImageClassificationSettings, Seq2SeqSettings
from ftscale.data.census import content_of, contradicting, odd_labels, repeated, row_warnings, shared_warning
from ftscale.data.prepare import SourceReport, sift, template_warnings
from ftscale.errors import counted
from ftscale.tasks.base import KEPT, Row, Sample
from ftscale.tasks.rows import is_blank
from ftscale.tasks.written_lists import items_in

SHOWN_ROWS = 3
LOOKED_AT_IMAGES = 200
"""Images that are decoded to see whether they show something."""
IGNORED = -100
MANY_LOST = 0.01
"""Share of unknown tokens, and of targets that cannot be written, from which on they are warned of."""

Pieces = list[tuple[str, bool]]
"""A text in pieces, each with whether it is a target."""


def describe_data(sample: DataSample, processor: Any) -> tuple[dict[str, Any], list[str]]:
    """Figures of the sample, and warnings about it."""
    facts: dict[str, Any] = {"train": _part(sample.train, sample, processor)}
    warnings = _warnings("data.train", facts["train"]) + _of_template("data.train", sample.train)
    if isinstance(task := sample.config.task, ImageClassificationSettings):
        warnings += _flat_images(sample.train, max_pixels=task.max_pixels)
    facts["label_distribution"] = label_distribution(sample)
    if sample.evaluation is not None:
        facts["eval"] = _part(sample.evaluation, sample, processor)
        warnings += _warnings("data.eval", facts["eval"]) + _of_template("data.eval", sample.evaluation)
        if sample.config.data.eval:
            facts["overlap"] = sample.overlap(sample.evaluation)
            if facts["overlap"]:
                warnings.append(_seen_before("data.eval", facts["overlap"], sample.evaluation))
        else:
            facts["overlap"], looked_at = sample.shared_inputs(sample.evaluation), len(sample.evaluation.rows)
            warnings += shared_warning("data.eval_ratio", facts["overlap"], looked_at, held_out=True)
    if sample.test is not None:
        facts["test"] = _part(sample.test, sample, processor)
        facts["test_overlap"] = sample.overlap(sample.test)
        warnings += _warnings("data.test", facts["test"]) + _of_template("data.test", sample.test)
        if facts["test_overlap"]:
            warnings.append(_seen_before("data.test", facts["test_overlap"], sample.test))
    if sample.learned_labels:
        warnings += odd_labels(facts["label_distribution"])
    if len(facts["label_distribution"]) == 1:
        warnings.append("every row looked at has one and the same label; look at the label column.")
    return facts, warnings


def marked_rows(sample: DataSample, processor: Any) -> list[Pieces]:
    """The first rows as the model sees them; a class or number that is the target stands at the end."""
    kept = [item for item in zip(sample.train.rows, sample.train.samples, strict=False) if item[1]["note"] in KEPT]
    return [_pieces(row, item, processor, writes=writes_tokens(sample.config.task)) for row, item in kept[:SHOWN_ROWS]]


def label_distribution(sample: DataSample) -> dict[str, int]:
    """Rows (for tags: words) of each class, most frequent first; empty for generation and numbers."""
    task = sample.config.task
    if isinstance(task, (CausalLMSettings, Seq2SeqSettings)) or task.labels is None:
        return {}
    numbers: Counter[int] = Counter()
    for item in sample.train.kept:
        own = item.get("tags", item.get("labels"))
        numbers.update(own if isinstance(own, list) else [int(own)])  # type: ignore[arg-type]
    return {task.labels[number]: count for number, count in numbers.most_common()}


def _seen_before(setting: str, count: int, part: Part) -> str:
    return (
        f"{count} of {counted(len(part.rows), 'row')} of {setting} are in data.train too: their scores say nothing "
        "about new data; take them out of one of the two."
    )


def _part(part: Part, sample: DataSample, processor: Any) -> dict[str, Any]:
    kept = part.kept
    contents = np.array([content_of(row) for row in part.rows], dtype=np.int64).reshape(-1, 2)
    notes = Counter(item["note"] for item in part.samples if item["note"] not in KEPT)
    facts: dict[str, Any] = {
        "rows_looked_at": len(part.rows),
        "rows": part.num_rows,
        "kept": len(kept),
        "dropped": dict(notes),
        "no_target": notes.get("no_target", 0),
        "duplicates": repeated(contents),
        "contradicting": contradicting(contents),
        "blank": sum(map(is_blank, part.rows)) - notes.get("blank", 0),
        "words_without_token": sum(_lost_words(item) for item in kept),
    }
    if sample.task.processor_class != "tokenizer":
        return facts
    writes = writes_tokens(sample.config.task)
    lengths = [item["length"] for item in kept]
    tokens, targets = sum(lengths), sum(item["targets"] for item in kept)
    facts |= {
        "truncated": sum(item["note"] == "truncated" for item in part.samples),
        "lengths": _lengths(lengths),
        "tokens": tokens,
        "targets": targets,
        "share_of_targets": targets / tokens if tokens and writes else None,
        "doubled_special_tokens": _doubled(kept, processor),
        "end_supervised": _end_supervised(kept, processor) if writes else None,
        **lost_text(part.rows, kept, sample.config.task, processor),
    }
    return facts


def _flat_images(part: Part, *, max_pixels: int) -> list[str]:
    """A warning of images that show nearly nothing, as one does whose values use little of the range of its depth."""
    from ftscale.tasks.image_classification import decode
    from ftscale.tasks.image_depth import NEARLY_ONE, value_range

    kept = part.kept
    looked_at = kept[:: max(len(kept) // LOOKED_AT_IMAGES, 1)]
    flat = []
    for number, item in enumerate(looked_at):
        low, high = value_range(decode(item, name=f"image {number}", max_pixels=max_pixels))
        if high - low < NEARLY_ONE:
            flat.append(f"{item['image_path'] or 'one in the rows'} ({low} to {high} of 255)")
    if not flat:
        return []
    return [
        f"data.train: the values of {len(flat)} of {len(looked_at)} images looked at are nearly all one, e.g. "
        f"{flat[0]}: they are blank, or use little of the range of their bits; rescale or remove them."
    ]


def _of_template(setting: str, part: Part) -> list[str]:
    report = SourceReport(setting)
    sift([dict(item) for item in part.samples], report)
    return template_warnings(report, setting=setting)


def _lengths(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {
        "min": min(lengths),
        "median": median(lengths),
        "p95": float(np.percentile(lengths, 95)),
        "max": max(lengths),
    }


def _doubled(kept: list[Sample], processor: Any) -> int:
    """Samples in which a beginning or end token stands twice in a row, as after a template that writes its own."""
    special = {processor.bos_token_id, processor.cls_token_id, processor.eos_token_id} - {None}
    return sum(
        any(first == second and first in special for first, second in zip(ids, ids[1:], strict=False))
        for ids in (item["input_ids"] for item in kept)
    )


def _end_supervised(kept: list[Sample], processor: Any) -> float | None:
    """Share of samples, not cut off, whose last target is an end token; None where there is no such sample."""
    ends = {processor.eos_token_id, *processor.added_tokens_encoder.values()} - {None}
    whole = [item for item in kept if item["note"] == ""]
    last = [next((label for label in reversed(item["labels"]) if label != IGNORED), None) for item in whole]
    return sum(label in ends for label in last) / len(whole) if whole else None


def _warnings(setting: str, facts: dict[str, Any]) -> list[str]:
    warnings = []
    looked_at = counted(facts["rows_looked_at"], "row")
    if facts.get("doubled_special_tokens"):
        warnings.append(
            f"{setting}: {counted(facts['doubled_special_tokens'], 'row')} with a special token twice in a row; the "
            "text or template has one that the tokenizer adds again."
        )
    if facts.get("end_supervised") == 0:
        warnings.append(f"{setting}: no row teaches the end token, so that the model would not learn to stop.")
    if facts.get("unwritable_targets", 0) > facts["rows_looked_at"] * MANY_LOST:
        warnings.append(
            f"{setting}: the targets of {facts['unwritable_targets']} of {looked_at} have characters that the "
            f"tokenizer cannot write ({_shown(facts['unwritable_characters'])}), so that the model never will; replace "
            "them in the data, or choose a model with another tokenizer."
        )
    if facts.get("unknown_tokens", 0) > MANY_LOST:
        characters = facts["unknown_characters"]
        warnings.append(
            f"{setting}: {facts['unknown_tokens']:.1%} of all tokens are unknown to the tokenizer"
            f"{f' (characters: {_shown(characters)})' if characters else ''}; look at the encoding of the data, or "
            "choose a model with another tokenizer."
        )
    if facts.get("truncated", 0) > facts["rows_looked_at"] / 10:
        warnings.append(
            f"{setting}: {facts['truncated']} of {looked_at} are cut off; raise task.max_length if their ends matter."
        )
    if facts["duplicates"] > facts["rows_looked_at"] / 20:
        warnings.append(f"{setting}: {facts['duplicates']} of {looked_at} repeat another exactly.")
    return warnings + row_warnings(
        setting, facts["contradicting"], blank=facts["blank"], lost=facts["words_without_token"]
    )


def _lost_words(item: Sample) -> int:
    return sum(place < 0 for place in item["places"]) if "places" in item and item["note"] == "" else 0


def _shown(characters: dict[str, int]) -> str:
    return ", ".join(map(repr, characters))


def _pieces(row: Row, item: Sample, processor: Any, *, writes: bool) -> Pieces:
    if "input_ids" not in item:
        return [(str(row.get("image", ""))[-80:], False), (str(row.get("label", "")), True)]
    ids = item["input_ids"]
    if not writes:
        if "places" in item:
            tags = zip(items_in(row["words"]), items_in(row["tags"]), strict=True)
            return [piece for word, tag in tags for piece in ((f"{word} ", False), (f"{tag} ", True))]
        return [(processor.decode(ids), False), (str(row.get("label", "")), True)]
    labels = item["labels"]
    in_place = len(labels) == len(ids) and all(
        label in (IGNORED, token) for label, token in zip(labels, ids, strict=True)
    )
    if not in_place:  # a decoder writes another text than the encoder reads
        return [(processor.decode(ids), False), (processor.decode([t for t in labels if t != IGNORED]), True)]
    places = [place for place in range(1, len(ids)) if (labels[place] != IGNORED) != (labels[place - 1] != IGNORED)]
    pieces: Pieces = []
    before = ""
    for start, stop in zip([0, *places], [*places, len(ids)], strict=True):
        text = processor.decode(ids[:stop])  # from the start: some tokenizers drop the space before a first word
        pieces.append((text.removeprefix(before), labels[start] != IGNORED))
        before = text
    return pieces
