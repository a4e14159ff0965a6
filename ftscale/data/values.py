"""Values of rows as they are read: what is no text is refused, and what only a column's type put there is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ftscale.base.errors import UserError
from ftscale.data.heard import say

SHOWN_CHARACTERS = 40
BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "0.": 0, "1.": 1}
"""How a class that is absent or present is written in a column, or a vector, of 0 and 1, in lower case."""
MOST_TEXT = 10_000_000
"""Characters of one value of a row, a whole chat too: `War and Peace` three times."""


def check_characters(value: Any, name: str, *, where: str) -> None:
    r"""Raise UserError, with the row's place, for a text that holds half of a pair of surrogates (`\ud83d` in JSON).

    And for a value of more than `MOST_TEXT` characters: a tokenizer takes 150 bytes of memory for each.
    """
    characters = 0
    for text in _texts(value):
        characters += len(text)
        if characters > MOST_TEXT:
            raise UserError(
                f"{ascii(where)[1:-1]}: {name} has more than the {MOST_TEXT} characters that the text of one row may "
                "have; split it into several rows."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = ascii(text[max(error.start - SHOWN_CHARACTERS, 0) : error.start + SHOWN_CHARACTERS])
            raise UserError(
                f"{ascii(where)[1:-1]}: {name} holds {ascii(text[error.start])} at character {error.start + 1}, which "
                f"is half of a pair and no character ({shown}); mend or remove the row."
            ) from error


def without_made_nulls(row: dict[str, Any], names: list[str], *, setting: str, path: str) -> None:
    """Leave out the nulls of objects inside columns, which a typed file has for each key that some other row has.

    A null that the user wrote looks the same there: where one is left out of a tool call or a tool, it is said once.
    """
    for name in names:
        if isinstance(row[name], (dict, list)):
            found: list[str] = []
            depth = 1 if name == "tools" else 0  # of a turn, a null and nothing are the same in every format
            row[name] = _without_nulls(row[name], found, depth=depth)
            if found:
                _say(setting, path, name)


def _say(setting: str, path: str, name: str) -> None:
    say(
        f"{setting}.path: {path}: nulls inside the objects of {name} are left out: a typed file has one for each key "
        "that another row has; to keep those that are meant, write arguments and tools as JSON text"
    )


def _without_nulls(value: Any, found: list[str], *, depth: int) -> Any:
    """`depth`: 0 among turns, where nothing is noted of a null; deeper, the key of each goes into `found`."""
    if isinstance(value, list):
        return [_without_nulls(item, found, depth=depth) for item in value]
    if not isinstance(value, dict):
        return value
    if depth:
        found += [key for key, inner in value.items() if inner is None]
    kept = {key: inner for key, inner in value.items() if inner is not None}
    return {key: _without_nulls(inner, found, depth=depth + 1) for key, inner in kept.items()}


def short(value: Any) -> str:
    """Return a value as Python writes it, cut to the length of a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
