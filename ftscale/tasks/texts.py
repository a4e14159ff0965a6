"""Texts that are compared: what stands for one, and those that a row says are wrong."""

from __future__ import annotations

import xxhash

from ftscale.data.missing import is_missing
from ftscale.tasks.base import Row
from ftscale.tasks.rows import text_of


def id_of(text: str) -> int:
    """A number for a text, from -2**63 on; the same for the same."""
    return xxhash.xxh3_64_intdigest(text.encode()) - 2**63


def negatives_of(row: Row) -> list[str]:
    """The texts in the column `negative`: one, several in a list, or none."""
    given = row.get("negative")
    listed = given if isinstance(given, (list, tuple)) else [given]
    return [text_of({**row, "negative": one}, "negative") for one in listed if not is_missing(one)]
