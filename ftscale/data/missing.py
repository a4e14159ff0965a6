"""What counts as a missing value, in every format: nothing, NaN, NaT, pandas' NA, and texts that the user names."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

LIKELY = frozenset(("nan", "none", "null", "na", "n/a", "<na>", "nat", "#n/a", "-nan"))
"""Texts, in lower case, that programs write for a missing value; warned of, and missing only where the user says so."""


def is_missing(value: Any) -> bool:
    """None, a NaN of any library, NaT and pandas' NA; no text and no list."""
    if value is None:
        return True
    if isinstance(value, Sized):  # a text, bytes, a list, an array
        return False
    return type(value).__name__ == "NAType" or bool(value != value)  # NA compares with nothing, NaN is not itself


def with_none(value: Any, *, missing_values: Sequence[str] = ()) -> Any:
    """The value with None for whatever is missing in it, also within lists and dicts.

    `missing_values`: texts, as the whole value, that stand for a missing one; `-1` is the number too.
    """
    if isinstance(value, str):
        return None if value.strip() in missing_values else value
    if isinstance(value, (list, tuple)):
        return [with_none(item) for item in value]
    if isinstance(value, dict):
        return {name: with_none(item) for name, item in value.items()}
    return None if is_missing(value) or (missing_values and str(value) in missing_values) else value
