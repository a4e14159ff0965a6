"""JSON: a list of objects or of lists, alone, under `data` or where `rows` says. The file is read whole.

A file of this name whose first line is a whole object is one of JSON lines, and read as such.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from ftscale.base.errors import UserError
from ftscale.data.formats import json_lines
from ftscale.data.formats.base import DataFile, Place, Record, open_bytes
from ftscale.data.formats.content import not_json
from ftscale.data.formats.lines import LINE_LIMIT, decoded, is_ascii_based, known_encoding
from ftscale.data.formats.nested import lists_in, rows_at
from ftscale.data.formats.paths import listed


def columns(file: DataFile) -> None:
    """None: each object has its own keys."""


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record an object, as a dict (of a list, by the numbers of its items).

    A place is `{"record": n}`; the file is parsed before it is reached. Of JSON lines it is theirs.
    """
    if _is_lines(file):
        if file.source.rows is not None:
            raise file.error(
                f"has an object a line, so that {file.setting}.rows = {file.source.rows!r} is not used; leave it out."
            )
        yield from json_lines.records(file, place=place, wanted=wanted)
        return
    start = place["record"] if place else 0
    for number, value in enumerate(_objects(file)[start:], start + 1):
        if type(value) is list:
            value = dict(enumerate(value))
        if type(value) is not dict:
            raise file.error(
                f"row {number} is of type {type(value).__name__}, must be an object {{...}} or a list [...]; mend it."
            )
        yield value, f"{file.path} row {number}", {"record": number}


def _is_lines(file: DataFile) -> bool:
    """Whether the first line is a whole object or list with more behind it, as in no document of JSON."""
    encoding = known_encoding(file)
    if not is_ascii_based(encoding):
        return False
    with open_bytes(file) as stream:
        lines = (line.strip() for line in iter(lambda: stream.readline(LINE_LIMIT + 1), b""))
        first = next(filter(None, lines), b"").removeprefix(b"\xef\xbb\xbf")
        if first[:1] + first[-1:] not in (b"{}", b"[]") or not any(lines):
            return False
    with suppress(ValueError, RecursionError):
        json.loads(first.decode(encoding))
        return True
    return False


def _objects(file: DataFile) -> list[Any]:
    document, place = _parse(file), file.source.rows
    value = document.get("data") if isinstance(document, dict) else document
    if place is not None:
        try:
            value = rows_at(document, place)
        except LookupError as error:
            raise UserError(f"{file.setting}.rows = {place!r}: {file.path} {error.args[0]}; {error.args[1]}") from error
        if not isinstance(value, list):
            raise UserError(
                f"{file.setting}.rows = {place!r} must be the place of a list in {file.path}, where it is of type "
                f"{type(value).__name__}; set it to one of {listed(lists_in(document))}."
            )
    if isinstance(value, list):
        return value
    if place is None and _is_row(document):
        return [document]
    if places := lists_in(document):
        raise file.error(
            f'must be a list of objects, or {{"data": [...]}}; of its lists {listed(places)}, set {file.setting}.rows: '
            f"{places[0]}."
        )
    raise file.error(
        'must be a list of objects, or {"data": [...]}; rewrite it so, or set '
        f"{file.setting}.format: jsonl if it has one object a line."
    )


def _is_row(document: Any) -> bool:
    """Whether the document is itself a row: an object of plain values, without a list in it."""
    if not isinstance(document, dict) or lists_in(document):
        return False
    return any(isinstance(value, (str, int, float)) for value in document.values())


def _parse(file: DataFile) -> Any:
    with open_bytes(file) as stream:
        content = stream.read()
    text = decoded(file, content)
    if not text.strip():
        return []
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        fix = "mend it; several objects stand in one list, or one on each line."
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 0
        raise file.error(f"is not one JSON value ({not_json(error)}); {fix}", line=line) from error
