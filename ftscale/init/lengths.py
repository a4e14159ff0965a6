"""The texts that a model reads of the rows, and about how many tokens they have."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftscale.init.columns import CHATS, TOKENS_A_WORD, Columns, pieces
from ftscale.init.look import Look

TOKENS_A_CHARACTER = 0.7
"""Of texts that are not English, whose words are cut more finely or not parted by blanks."""
READ = ("text", "text_pair", "words", "prompt", "source", "instruction", "input", *CHATS)
ASKED = ("question", "context", "choices")
WRITTEN = ("completion", "target", "output")
"""Columns that a model reads, and those that it is to write."""


@dataclass(frozen=True)
class Lengths:
    """About how many tokens the rows have."""

    p95: float
    p99: float
    """Of 99 rows in 100 this or fewer."""
    total: float


def texts_of(found: Look, columns: Columns, roles: Sequence[str]) -> list[str]:
    """Return what stands in the columns of these roles, of each row all of it together."""
    roles = ASKED if "question" in columns else roles
    names = [part for role in roles for part in _parts(columns.get(role, role))]
    used = [column for name in dict.fromkeys(names) if (column := found.column(name)) is not None]
    if not used and found.form == "conll":
        used = found.columns[:1]
    return [" ".join(map(plain, row)) for row in zip(*(column.values for column in used), strict=False)]


def lengths_of(texts: Sequence[str], *, english: bool) -> Lengths | None:
    """Return the lengths of texts by their words, or by their characters; None where there is no text."""
    if not texts:
        return None
    if english:
        return of_tokens([pieces(text) * TOKENS_A_WORD for text in texts])
    return of_tokens([len(text) * TOKENS_A_CHARACTER for text in texts])


def of_tokens(tokens: Sequence[float]) -> Lengths:
    """Return the lengths of rows of so many tokens."""
    ordered = sorted(tokens)
    return Lengths(_share(ordered, 0.95), _share(ordered, 0.99), sum(ordered))


def repeated(texts: Sequence[str]) -> float:
    """Return the share of rows whose text another row has too."""
    seen: dict[str, int] = {}
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
    return sum(count for count in seen.values() if count > 1) / len(texts) if texts else 0.0


def plain(value: Any) -> str:
    """Return all texts of a value, also of lists and objects."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return " ".join(map(plain, value.values())) if isinstance(value, dict) else str(value)


def _parts(name: Any) -> list[Any]:
    """The columns in a name: of a template those in braces, of a path its first part."""
    if not isinstance(name, str):
        return name if isinstance(name, list) else [name]
    inside = re.findall(r"\{([^{}]+)\}", name) or [name]
    return [part for whole in inside for part in dict.fromkeys((whole, whole.split(".")[0]))]


def _share(lengths: Sequence[float], share: float) -> float:
    return lengths[min(len(lengths) - 1, math.ceil(share * len(lengths)))]
