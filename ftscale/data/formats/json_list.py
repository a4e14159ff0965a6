"""JSON: one list of objects, or {"data": [...]}. The file is read whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ftscale.data.formats.base import HEAD_BYTES, DataFile, Place, Record, open_bytes, told_as_damage
from ftscale.data.formats.content import not_json
from ftscale.data.formats.lines import check_encoding, known_encoding, not_decodable


def columns(file: DataFile) -> None:
    """None: each object has its own keys."""


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record an object, as a dict. A place is `{"record": n}`; the file is parsed before it is reached."""
    start = place["record"] if place else 0
    for number, value in enumerate(_objects(file)[start:], start + 1):
        if type(value) is not dict:
            raise file.error(f"row {number} is of type {type(value).__name__}, must be an object {{...}}; mend it.")
        yield value, f"{file.path} row {number}", {"record": number}


def _objects(file: DataFile) -> list[Any]:
    value = _parse(file)
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise file.error(
            'must be a list of objects, or {"data": [...]}; rewrite it so, or set '
            f"{file.setting}.format: jsonl if it has one object a line."
        )
    return value


def _parse(file: DataFile) -> Any:
    with open_bytes(file) as stream, told_as_damage(file):
        content = stream.read()
    encoding = known_encoding(file)
    check_encoding(file, content[:HEAD_BYTES], file.path)
    if not content.strip():
        return []
    try:
        return json.loads(content.decode(encoding).removeprefix("\ufeff"))
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        raise not_decodable(file, error, line=content.count(b"\n", 0, start) + 1) from error
    except (ValueError, RecursionError) as error:
        fix = f"mend it, or set {file.setting}.format: jsonl if it has one object a line."
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 0
        raise file.error(f"is not one JSON value ({not_json(error)}); {fix}", line=line) from error
