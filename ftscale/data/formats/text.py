"""Plain text: one row a line, in the column `text`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.lines import open_lines


def columns(file: DataFile) -> tuple[str]:
    """Return the name of the one column."""
    return ("text",)


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a line without its end; blank lines are passed over, for there is nothing in them to learn."""
    name = file.path
    copies = range(len(wanted))
    with open_lines(file, place=place) as lines:
        for line in lines:
            text = line.rstrip("\r\n")
            if text and not text.isspace():
                yield [text for _ in copies], f"{name}:{lines.line}", lines.place()
