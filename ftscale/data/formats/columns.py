"""A column of a file by its name or number, and what to say of one that is not there."""

from __future__ import annotations

from difflib import get_close_matches

from ftscale.base.errors import UserError, counted
from ftscale.data.formats.base import DataFile

OBJECT_FORMATS = ("jsonl", "json", "hub")
"""Formats whose rows are objects, each with names of its own; a row of JSON may also be a list, with numbers."""

Columns = tuple[str | int, ...]
"""Names of columns, or their numbers from 0 where they have none."""


def column_number(file: DataFile, available: Columns, key: str | int, *, setting: str, where: str) -> int | None:
    """Return the number of the column with a name or a number; None where no column has the name.

    `setting`: where the key was written; `where`: the file or row that has the columns. Raises UserError for a number
    that no column has, and for a name that several have.
    """
    if isinstance(key, int):
        if file.format in OBJECT_FORMATS and not (available and isinstance(available[0], int)):
            raise UserError(f"{setting} = {key} must be a name: {where} has {shown_columns(available)}.")
        if not -len(available) <= key < len(available):
            raise UserError(
                f"{setting} = {key} must be below {len(available)}, the number of columns of {where}; columns count "
                "from 0."
            )
        return key % len(available)
    if available.count(key) > 1:
        raise UserError(
            f"{file.setting}.columns: {where} has {available.count(key)} columns called {key!r}; choose one by its "
            f"number from 0: {setting}={available.index(key)}."
        )
    return available.index(key) if key in available else None


def nearest_column(available: Columns, name: str) -> str | None:
    """Return the column that a wrong name is most like; None where none is."""
    names = [column for column in available if isinstance(column, str)]
    close = get_close_matches(name, names, n=1, cutoff=0.4)
    return close[0] if close else None


def shown_columns(available: Columns) -> str:
    """Say which columns there are, for a message."""
    if available and all(isinstance(column, int) for column in available):
        return f"{counted(len(available), 'column')} without names"
    return f"the columns {', '.join(map(repr, available))}" if available else "no columns"
