"""JSON lines: one object a line, or one list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.content import not_json
from ftscale.data.formats.lines import open_lines


def columns(file: DataFile) -> None:
    """None: each object has its own keys."""


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a line, as a dict (of a list, by the numbers of its items); blank lines are passed over."""
    name = file.path
    with open_lines(file, place=place) as lines:
        for text in lines:
            if text.isspace():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                # behind a whole object there is no list
                other = f", or set {file.setting}.format: json if the file is one list" if lines.line == 1 else ""
                raise file.error(f"is not JSON ({not_json(error)}); mend the line{other}.", line=lines.line) from error
            if type(value) is list:
                value = dict(enumerate(value))
            if type(value) is not dict:
                raise file.error(
                    f"is of type {type(value).__name__}, must be an object or a list; write one {{...}} a line.",
                    line=lines.line,
                )
            yield value, f"{name}:{lines.line}", lines.place()
