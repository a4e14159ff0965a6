"""Parallel text: line n of the second file is the translation of line n of the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.lines import open_lines


def columns(file: DataFile) -> tuple[str, str]:
    """The first file is the source, the second the target."""
    return ("source", "target")


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a pair of lines; pairs of two blank lines are passed over.

    A place is `{"source": place, "target": place}`, one for each file.
    """
    name = file.path
    first, second = file.paths
    starts = place or {"source": None, "target": None}
    with (
        open_lines(file, path=first, place=starts["source"]) as sources,
        open_lines(file, path=second, place=starts["target"]) as targets,
    ):
        for pair in zip_longest(sources, targets):
            texts = [line.rstrip("\r\n") if line is not None else "" for line in pair]
            if not any(texts):
                continue
            if None in pair:
                longer, shorter = (second, first) if pair[0] is None else (first, second)
                line = max(sources.line, targets.line)
                raise file.error(
                    f"has no counterpart in {shorter}, which ends before; align them.", line=line, path=longer
                )
            here = {"source": sources.place(), "target": targets.place()}
            yield [texts[column] for column in wanted], f"{name}:{sources.line}", here
