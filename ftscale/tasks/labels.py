"""Class names: found in the training rows, numbered, and looked up with an error that names the nearest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ftscale.errors import UserError, unknown_name
from ftscale.tasks.base import Row
from ftscale.tasks.rows import where


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names in order: as numbers where all are numbers, else as text."""
    distinct = set(names)
    try:
        return tuple(sorted(distinct, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(distinct))


def class_name(row: Row, column: str) -> str:
    """The class in a column; `1.0` is the class `1`. Raises UserError where there is none."""
    return _as_name(row, column, row.get(column))


def class_names(row: Row, column: str, *, separator: str) -> list[str]:
    """The classes in a column that holds a list, or names joined by `separator`; none where it is empty."""
    value = row.get(column)
    if value is None:
        return []
    items = value if isinstance(value, (list, tuple)) else str(value).split(separator)
    return [_as_name(row, column, item) for item in items if not isinstance(item, str) or item.strip()]


def class_id(row: Row, column: str, name: str, *, labels: Sequence[str], ids: dict[str, int]) -> int:
    """The number of a class. Raises UserError for one that is not among `labels`."""
    if name not in ids:
        raise UserError(
            f"{unknown_name(f'{where(row)}: {column}', name, labels)} It is not in task.labels, nor, where "
            "that is null, in data.train; mend the row, or name all classes in task.labels."
        )
    return ids[name]


def label_settings(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of a model's config that name its classes."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _as_name(row: Row, column: str, value: Any) -> str:
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None if math.isnan(value) else value
    name = "" if value is None else str(value).strip()
    if not name:
        raise UserError(f"{where(row)}: {column} = {value!r} must be a class; mend the row, or name another column.")
    return name
