"""The column that is most like a label, where neither its name nor few values tell it."""

from __future__ import annotations

from collections.abc import Sequence

from ftscale.init.look import Column

SHORT = 4
"""Words of the name of a class, on average."""


def likely_label(columns: Sequence[Column]) -> Column | None:
    """Return the column that is most like a label: of short words that recur, else of numbers; None where none is.

    Whole numbers that do not recur are ids, and in a column with a name they may be years.
    """
    names = [column for column in columns if not column.is_number and column.words <= SHORT and _recurs(column)]
    if names:
        return min(names, key=lambda column: column.words)
    numbers = (column for column in columns if column.is_number)
    return next((it for it in numbers if it.is_fraction or (isinstance(it.name, int) and _recurs(it))), None)


def _recurs(column: Column) -> bool:
    """Whether a value stands in two rows or more, on average."""
    return 1 < len(column.counts) <= len(column.values) / 2
