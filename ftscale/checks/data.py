"""What the data looks like when it is prepared: text with its targets marked, lengths, dropped rows, repetitions."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from statistics import median
from typing import Any

import numpy as np

from ftscale.base.errors import counted
from ftscale.checks.characters import lost_text
from ftscale.checks.sample import DataSample, Part
from ftscale.data.census import contradicting, odd_labels, repeated, row_warnings, shared_warning
from ftscale.data.prepare import SourceReport, sift, template_warnings
from ftscale.data.sample import Sample
from ftscale.modalities.collate import IGNORED
from ftscale.precheck.advice import MANY_CUT
from ftscale.tasks.base import Pieces
from ftscale.tasks.rows import is_blank

SHOWN_ROWS = 3
MANY_LOST = 0.01
"""Share of unknown tokens, and of targets that cannot be written, from which on they are warned of."""


def describe_data(sample: DataSample) -> tuple[dict[str, Any], list[str]]:
    """Figures of the sample, and warnings about it."""
    facts: dict[str, Any] = {"train": _part(sample.train, sample)}
    warnings = _warnings("data.train", facts["train"]) + _of_template("data.train", sample.train)
    warnings += [f"data.train: {text}" for text in sample.task.sample_warnings(sample.train.kept)]
    facts["label_distribution"] = label_distribution(sample)
    if sample.evaluation is not None:
        facts["eval"] = _part(sample.evaluation, sample)
        warnings += _warnings("data.eval", facts["eval"]) + _of_template("data.eval", sample.evaluation)
        if sample.config.data.eval:
            facts["overlap"] = sample.overlap(sample.evaluation)
            if facts["overlap"]:
                warnings.append(_seen_before("data.eval", facts["overlap"], sample.evaluation))
        else:
            facts["overlap"], looked_at = sample.shared_inputs(sample.evaluation), len(sample.evaluation.rows)
            warnings += shared_warning("data.eval_ratio", facts["overlap"], looked_at, held_out=True)
    if sample.test is not None:
        facts["test"] = _part(sample.test, sample)
        facts["test_overlap"] = sample.overlap(sample.test)
        warnings += _warnings("data.test", facts["test"]) + _of_template("data.test", sample.test)
        if facts["test_overlap"]:
            warnings.append(_seen_before("data.test", facts["test_overlap"], sample.test))
    if sample.learned_labels:
        warnings += odd_labels(facts["label_distribution"])
    if len(facts["label_distribution"]) == 1:
        warnings.append("every row looked at has one and the same label; look at the label column.")
    return facts, warnings


def marked_rows(sample: DataSample) -> list[Pieces]:
    """The first rows as the model sees them; a class or number that is the target stands at the end."""
    part = sample.train
    kept = (item for item in enumerate(part.samples) if not item[1].drop)
    first = islice(kept, SHOWN_ROWS)
    return [sample.task.show(part.rows[number if item.rows is None else item.rows[0]], item) for number, item in first]


def label_distribution(sample: DataSample) -> dict[str, int]:
    """Rows (for tags: words) of each class, most frequent first; empty for generation and numbers."""
    numbers: Counter[int] = Counter()
    for item in sample.train.kept:
        numbers.update(sample.task.classes(item))
    labels = getattr(sample.config.task, "labels", None) or ()
    return {labels[number]: count for number, count in numbers.most_common()}


def _seen_before(setting: str, count: int, part: Part) -> str:
    return (
        f"{count} of {counted(len(part.rows), 'row')} of {setting} are in data.train too: their scores say nothing "
        "about new data; take them out of one of the two."
    )


def _part(part: Part, sample: DataSample) -> dict[str, Any]:
    kept, contents, processor = part.kept, sample.contents(part), sample.task.processor
    dropped = Counter(item.drop for item in part.samples if item.drop)
    facts: dict[str, Any] = {
        "rows_looked_at": len(part.rows),
        "rows": part.num_rows,
        "kept": len(kept),
        "dropped": dict(dropped),
        "no_target": dropped.get("no_target", 0),
        "duplicates": repeated(contents),
        "contradicting": contradicting(contents),
        "blank": sum(map(is_blank, part.rows)) - dropped.get("blank", 0),
        "words_without_token": sum(item.facts.get("lost", 0) for item in kept),
    }
    if not sample.task.modality.in_tokens:
        return facts
    writes = "writes_text" in sample.config.task.can
    lengths = [item.cost for item in kept]
    tokens, targets = sum(lengths), sum(item.targets for item in kept)
    facts |= {
        "truncated": sum(item.truncated and not item.drop for item in part.samples),
        "lengths": _lengths(lengths),
        "tokens": tokens,
        "targets": targets,
        "share_of_targets": targets / tokens if tokens and writes else None,
        "doubled_special_tokens": _doubled(kept, processor),
        "end_supervised": _end_supervised(kept, processor) if writes else None,
        **lost_text(part.rows, kept, sample.task),
    }
    return facts


def _of_template(setting: str, part: Part) -> list[str]:
    report = SourceReport(setting)
    sift(part.samples, report)
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
        for ids in (item.inputs["input_ids"] for item in kept)
    )


def _end_supervised(kept: list[Sample], processor: Any) -> float | None:
    """Share of samples, not cut off, whose last target is an end token; None where there is no such sample."""
    ends = {processor.eos_token_id, *processor.added_tokens_encoder.values()} - {None}
    whole = [item for item in kept if not item.truncated]
    last = [next((label for label in reversed(item.label) if label != IGNORED), None) for item in whole]
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
    if facts["rows_looked_at"] / 10 < facts.get("truncated", 0) < facts["kept"] * MANY_CUT:
        warnings.append(
            f"{setting}: {facts['truncated']} of {looked_at} are cut off; raise task.max_length if their ends matter."
        )
    if facts["duplicates"] > facts["rows_looked_at"] / 20:
        warnings.append(f"{setting}: {facts['duplicates']} of {looked_at} repeat another exactly.")
    return warnings + row_warnings(
        setting, facts["contradicting"], blank=facts["blank"], lost=facts["words_without_token"]
    )


def _shown(characters: dict[str, int]) -> str:
    return ", ".join(map(repr, characters))
