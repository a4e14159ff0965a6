"""Values of a row as the tasks need them, with errors that name the row."""

from __future__ import annotations

import math
from typing import Any

from ftscale.errors import UserError
from ftscale.tasks.base import Row


def where(row: Row) -> str:
    """The file and line of a row, as its reader noted them."""
    return str(row.get("_where", "a row"))


def text_of(row: Row, column: str) -> str:
    """A column as a string; a number is written out. Raises UserError where there is none."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where(row)}: {column} = {value!r} must be a text; mend the row, or name another column.")


def number_of(row: Row, column: str) -> float:
    """A column as a finite number. Raises UserError where it is none."""
    value = row.get(column)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where(row)}: {column} = {value!r} must be a number; mend the row, or name another column.")
    return number


def words_of(row: Row, column: str) -> list[str]:
    """A column as a list of strings. Raises UserError where it is none."""
    value: Any = row.get(column)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where(row)}: {column} = {value!r} must be a list of strings, one a word; mend the row.")
    return list(value)
