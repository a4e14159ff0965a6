"""A value inside objects and lists, by a dotted path such as `translation.en` or `answers.0.text`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ftscale.base.errors import nearest
from ftscale.data.formats.paths import listed
from ftscale.data.missing import is_missing

NUMBER = re.compile(r"-?[0-9]{1,9}")
FIX = "correct the path."
MOST_DEPTH = 4
"""Levels of a document at which lists are looked for."""


def value_at(value: Any, path: str, *, inside: str = "") -> Any:
    """Return what stands at a dotted path: keys of objects, and numbers from 0 (or from the end, -1) in lists.

    A key that holds dots itself goes before its parts. None where something on the way is missing. `inside`: the path
    of the value itself, for messages. Raises LookupError for a key or an item that is not there; its arguments are a
    text that goes on from the file's or the row's name, and the fix.
    """
    parts, before = path.split("."), [inside] if inside else []
    for number, part in enumerate(parts):
        at = [*before, *parts[:number]]
        rest = ".".join(parts[number:])
        if is_missing(value):
            return None
        if isinstance(value, dict):
            if rest in value:
                return value[rest]
            if part not in value:
                raise _no_key(value, part, at=at)
            value = value[part]
        elif isinstance(value, (list, tuple)):
            value = _item(value, part, at=at)
        else:
            kind = type(value).__name__
            raise LookupError(f"has {_inside(at)}a value of type {kind}, in which is no {part!r}", FIX)
    return value


def rows_at(document: Any, path: str) -> Any:
    """Return what stands at a dotted path; of a list inside the items of another (`data.paragraphs.qas`) all items.

    These have the keys of the objects that they lie in as well, where they have none of the same name. Raises
    LookupError, see `value_at`.
    """
    with suppress(LookupError):
        return value_at(document, path)
    value, parts = document, path.split(".")
    for number, part in enumerate(parts):
        if isinstance(value, list) and not NUMBER.fullmatch(part):
            return [row for item in value for row in _rows_in(item, parts[number:], at=parts[:number])]
        value = value_at(value, part, inside=".".join(parts[:number]))
    return value


def _rows_in(item: Any, parts: list[str], *, at: list[str]) -> list[Any]:
    """The rows inside one item of a list, with what the item says besides them."""
    path = ".".join(parts)
    found = rows_at(item, path)
    if found is None:
        return []
    if not isinstance(found, list):
        raise LookupError(f"has {_inside([*at, *parts])}a value of type {type(found).__name__}, and no list", FIX)
    beside = {key: value for key, value in item.items() if key != parts[0]} if isinstance(item, dict) else {}
    return [beside | row if isinstance(row, dict) else row for row in found]


def lists_in(document: Any) -> list[str]:
    """Return the dotted paths of the lists that a document's objects hold, in their order."""
    return list(_lists(document, (), MOST_DEPTH))


def _lists(value: Any, at: tuple[str, ...], depth: int) -> Iterator[str]:
    if isinstance(value, list) and at:
        yield ".".join(at)
    elif isinstance(value, dict) and depth:
        for key, inner in value.items():
            yield from _lists(inner, (*at, key), depth - 1)


def _no_key(value: dict[str, Any], part: str, *, at: list[str]) -> LookupError:
    meant = nearest(part, map(str, value))
    fix = f"did you mean {'.'.join((*at, meant))!r}?" if meant is not None else FIX
    return LookupError(f"has {_inside(at)}no {part!r} but {listed(map(str, value))}", fix)


def _item(value: list[Any] | tuple[Any, ...], part: str, *, at: list[str]) -> Any:
    if not NUMBER.fullmatch(part):
        raise LookupError(f"has {_inside(at)}a list, in which {part!r} must be a number from 0", FIX)
    if not -len(value) <= int(part) < len(value):
        raise LookupError(f"has {_inside(at)}a list of {len(value)}, in which is no item {part}", FIX)
    return value[int(part)]


def _inside(at: list[str]) -> str:
    return f"at {'.'.join(at)} " if at else ""
