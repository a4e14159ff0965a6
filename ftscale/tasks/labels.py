"""Class names: found in the training rows, numbered, and looked up with an error that names the nearest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ftscale.base.errors import UserError, unknown_name
from ftscale.config.tasks.base import ClassNames
from ftscale.data.missing import is_missing
from ftscale.data.values import BITS
from ftscale.tasks.base import Row
from ftscale.tasks.rows import mend, where
from ftscale.tasks.written_lists import is_cut_list, parse_list


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in order, whatever order they come in: as numbers where all are numbers, else as text.

    The name "nan" is a text: a number that is neither less nor more than another has no place in an order.
    """
    distinct = set(names)
    try:
        numbers = {name: float(name) for name in distinct}
    except ValueError:
        return tuple(sorted(distinct))
    if any(map(math.isnan, numbers.values())):
        return tuple(sorted(distinct))
    return tuple(sorted(distinct, key=lambda name: (numbers[name], name)))


def class_numbers(settings: ClassNames) -> dict[str, int]:
    """What the files may write for a class to the class's number: its name, or the number that stands for it."""
    labels = settings.labels or ()
    numbers = {str(value): place for place, value in enumerate(settings.label_ids or ())}
    return {**numbers, **{label: place for place, label in enumerate(labels)}}


def class_name(row: Row, column: str) -> str:
    """The class in a column; `1.0` is the class `1`. Raises UserError where there is none, or a list."""
    value = row.get(column)
    items = parse_list(value) if isinstance(value, str) else None
    if isinstance(value, (list, tuple, dict)) or (items and all(isinstance(item, str) for item in items)):
        raise UserError(
            f"{where(row)}: {column} = {value!r} is a list; mend the row, or set task.problem: multi_label, a setting "
            "of text_classification, where a row may have several classes."
        )
    return _as_name(row, column, value)


def class_items(row: Row, column: str, *, separator: str) -> list[str]:
    """The classes in a column that holds a list, a text of one, or names joined by `separator`; none where it is empty.

    A vector of 0 and 1 comes as the names "0" and "1": see `vector_of`.
    """
    value = row.get(column)
    if is_missing(value):
        return []
    if isinstance(value, dict):
        raise UserError(f"{where(row)}: {column} = {value!r} must be a list of classes; mend the row.")
    items: list[Any] | None
    if isinstance(value, str):
        items = parse_list(value)
        if items is None and is_cut_list(value):
            raise UserError(
                f"{where(row)}: {column} = {value!r} looks like a list but cannot be read as one; write it as JSON, "
                '["a", "b"], or join the names by task.label_separator.'
            )
        items = value.split(separator) if items is None else items
    else:
        items = list(value) if isinstance(value, (list, tuple)) else [value]
    return [_as_name(row, column, item) for item in items if not isinstance(item, str) or item.strip()]


def vector_of(row: Row, column: str, items: Sequence[str], *, labels: Sequence[str]) -> list[int] | None:
    """The numbers of the classes that a vector of 0 and 1 has; None where the items are names or numbers of classes.

    A vector has a 0 or 1 for each class, where no class is called so. Raises UserError for one of another length.
    """
    if not is_vector(items) or any(label.lower() in BITS for label in labels):
        return None
    if len(items) == len(labels):
        return [place for place, item in enumerate(items) if BITS[item.lower()]]
    if len(labels) <= 2 or len(set(items)) < len(items):  # no list of numbers of classes has one twice
        raise UserError(
            f"{where(row)}: {column} has {len(items)} numbers of 0 and 1 for the {len(labels)} classes of task.labels; "
            "write a number for each, or the names of classes."
        )
    return None


def is_vector(items: Sequence[str]) -> bool:
    """Whether names may be a vector: all of them 0 or 1."""
    return bool(items) and all(item.lower() in BITS for item in items)


def bit_of(row: Row, column: str) -> int:
    """0 or 1 of a column that stands for a class. Raises UserError where it is neither."""
    value = row.get(column)
    written = str(value).strip().lower()
    if is_missing(value) or written not in BITS:
        raise UserError(f"{where(row)}: {column} = {value!r} must be 0 or 1; {mend(value)}.")
    return BITS[written]


def class_id(row: Row, column: str, name: str, *, labels: Sequence[str], ids: dict[str, int]) -> int:
    """The number of a class by what the file writes, see `class_numbers`. Raises UserError where there is no such."""
    known = name if name in ids else name.removesuffix(".0")  # pandas writes 1.0 where some are missing
    if known not in ids:
        raise UserError(
            f"{unknown_name(f'{where(row)}: {column}', name, labels)} It is not in task.labels, nor, where "
            "that is null, in data.train; mend the row, or name all classes in task.labels."
        )
    return ids[known]


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of a model's config that name its classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def best_classes(logits: torch.Tensor, labels: Sequence[str], *, every: bool) -> list[dict[str, Any]]:
    """The most probable class of each row as `prediction` and `score`; with `every`, all of them as `scores`.

    logits: (rows, classes) float32.
    """
    probabilities = logits.softmax(dim=-1)
    scores, ids = probabilities.max(dim=-1)
    answers: list[dict[str, Any]] = [
        {"prediction": labels[number], "score": score}
        for number, score in zip(ids.tolist(), scores.tolist(), strict=True)
    ]
    if every:
        for answer, row in zip(answers, probabilities.tolist(), strict=True):
            answer["scores"] = dict(zip(labels, row, strict=True))
    return answers


def _as_name(row: Row, column: str, value: Any) -> str:
    if is_missing(value):
        name = ""
    elif isinstance(value, float) and value.is_integer():
        name = str(int(value))
    else:
        name = str(value).strip()
    if not name:
        raise UserError(f"{where(row)}: {column} = {value!r} must be a class; {mend(value)}.")
    return name
