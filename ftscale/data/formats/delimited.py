"""CSV and TSV: a header or none, quoted line breaks in CSV, quotes taken literally in TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Literal

from ftscale.base.errors import UserError, counted
from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.lines import Lines, open_lines

FIELD_LIMIT = 32 * 2**20
"""Characters of one field; csv's own limit of 128 Ki is met by real documents, none at all by a lost quote."""


def columns(file: DataFile) -> tuple[str | int, ...] | None:
    """The header's names, or numbers from 0 where there is no header; None for an empty file."""
    with open_lines(file) as lines:
        first = next(_fields(file, lines), None)
    if first is None:
        return None
    return tuple(first[0]) if file.source.header else tuple(range(len(first[0])))


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a row; blank lines are passed over. Every field is a string."""
    known = columns(file)
    if known is None:
        return
    width = len(known)
    name = file.path
    with open_lines(file, place=place) as lines:
        rows = _fields(file, lines)
        if place is None and file.source.header:
            next(rows)
        for fields, line in rows:
            if len(fields) != width:
                raise _wrong_width(file, line=line, found=len(fields), expected=width)
            yield [fields[column] for column in wanted], f"{name}:{line}", lines.place()


def _fields(file: DataFile, lines: Lines) -> Iterator[tuple[list[str], int]]:
    """Fields of each row that is not blank, and the number of its first line."""
    reader = _reader(file, lines)
    start = lines.line + 1
    try:
        for fields in reader:  # takes the lines of one row, never one more: `lines` stands just after it
            if fields:
                yield fields, start
            start = lines.line + 1
    except csv.Error as error:
        if "new-line character" in str(error):
            raise file.error(
                "has a carriage return inside a field that is not quoted; quote the field, or take it out.", line=start
            ) from error
        raise file.error(
            f"is not {file.format.upper()} ({error}); double the quotes inside a quoted field and close each, or set "
            f"{file.setting}.format: tsv where quotes are part of the text.",
            line=start,
        ) from error


def _reader(file: DataFile, lines: Lines) -> Iterator[list[str]]:
    if csv.field_size_limit() < FIELD_LIMIT:
        csv.field_size_limit(FIELD_LIMIT)
    separator = _separator(file)
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(
            f"{file.setting}.separator = {separator!r} must be one character and no quote or line end; "
            "leave it out for a comma (csv) or a tab (tsv)."
        )
    quoting: Literal[0, 3] = csv.QUOTE_NONE if file.format == "tsv" else csv.QUOTE_MINIMAL
    # strict: a lost quote is an error, instead of one field that runs on to the next quote
    return csv.reader(iter(lines), delimiter=separator, quoting=quoting, strict=True)


def _wrong_width(file: DataFile, *, line: int, found: int, expected: int) -> UserError:
    by = "header" if file.source.header else "first line"
    return file.error(
        f"has {counted(found, 'field')} where the {by} has {expected}; mend the line, quote fields that hold the "
        f"separator {_separator(file)!r}, or set {file.setting}.separator.",
        line=line,
    )


def _separator(file: DataFile) -> str:
    return file.source.separator or ("\t" if file.format == "tsv" else ",")
