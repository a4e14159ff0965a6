"""What a file's first rows say of its columns, to tell files of one kind from others."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import load_format
from ftscale.data.formats.discover import discover

ROWS = 20
LONGEST = 40
"""Characters of a name of a column; a longer cell is a value."""


def columns_of(source: dict[str, Any], *, setting: str) -> list[str | int] | None:
    """Return the columns of a source, numbers where it has no header; None where its rows have none.

    Raises UserError where it cannot be read.
    """
    file = discover(SourceConfig(**source), setting=setting)[0]
    module = load_format(file.format)
    names = module.columns(file)
    if names is not None:
        return list(names)
    rows = [values for values, _, _ in islice(module.records(file, place=None, wanted=[]), ROWS)]
    return list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row)) or None


def head_of(path: str) -> Hashable:
    """Return what files of the same columns have in common: their names, or else how many there are."""
    try:
        names = columns_of({"path": path}, setting="FILE")
    except UserError:
        return None
    if names is None:
        return None
    texts = [str(name) for name in names]
    are_names = all(len(text) <= LONGEST and not text.replace(".", "").isdigit() for text in texts)
    return frozenset(texts) if are_names else len(texts)
