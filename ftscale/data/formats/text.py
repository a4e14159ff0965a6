"""Plain text: one row a line, in the column `text`, or in the named groups of a pattern."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ftscale.base.errors import UserError
from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.lines import open_lines
from ftscale.data.values import short

MATCH_LIMIT_S = 10.0
"""Seconds of the processor for one line: a pattern such as `(a+)+b` tries as many ways as there are subsets."""


def columns(file: DataFile) -> tuple[str, ...]:
    """Return the name of the one column, or the names of the pattern's groups in their order."""
    pattern = _pattern(file)
    return ("text",) if pattern is None else tuple(sorted(pattern.groupindex, key=pattern.groupindex.get))


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a line without its end; blank lines are passed over, for there is nothing in them to learn.

    Raises UserError for a line that the pattern does not match as a whole.
    """
    name = file.path
    pattern = _pattern(file)
    groups = [columns(file)[column] for column in wanted]
    with open_lines(file, place=place) as lines:
        for line in lines:
            text = line.rstrip("\r\n")
            if not text or text.isspace():
                continue
            values = (
                [text for _ in groups] if pattern is None else _matched(file, pattern, text, groups, line=lines.line)
            )
            yield values, f"{name}:{lines.line}", lines.place()


def _matched(file: DataFile, pattern: Any, text: str, groups: Sequence[str], *, line: int) -> list[str | None]:
    setting = f"{file.setting}.pattern = {file.source.pattern!r}"
    try:
        found = pattern.fullmatch(text, timeout=MATCH_LIMIT_S)
    except TimeoutError as error:
        raise file.error(
            f"takes more than {MATCH_LIMIT_S:g} s to be matched with {setting}; write it with fewer repetitions inside "
            "each other.",
            line=line,
        ) from error
    if found is None:
        raise file.error(
            f"is {short(text)}, which {setting} does not match as a whole; mend the line or the pattern, or set "
            f"{file.setting}.pattern: null where a line is a text and nothing else.",
            line=line,
        )
    return [found[group] for group in groups]


def _pattern(file: DataFile) -> Any:
    """The compiled pattern; None where none is set. Raises UserError for one that is none, or has no named group."""
    return None if file.source.pattern is None else _compiled(file.source.pattern, f"{file.setting}.pattern")


@lru_cache(maxsize=64)
def _compiled(pattern: str, setting: str) -> Any:
    import regex  # and not re, which knows no time limit

    try:
        found = regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise UserError(f"{setting} = {pattern!r} is not a regular expression ({error}); mend it.") from error
    if not found.groupindex:
        raise UserError(
            f"{setting} = {pattern!r} must have a named group for each column; write e.g. "
            r"(?P<label>\S+) (?P<text>.+)."
        )
    return found
