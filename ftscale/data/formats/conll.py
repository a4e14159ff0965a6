"""CoNLL: a word a line with its columns, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from ftscale.base.errors import counted
from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.lines import Lines, open_lines

DOCUMENT_START = "-DOCSTART-"
WHITE_SPACE = re.compile(r"[ \t]+")  # not str.split(): words may hold a no-break space
Word = tuple[list[str], int]
"""Fields, and the number of the line."""


def columns(file: DataFile) -> tuple[int, ...] | None:
    """Numbers of the columns, as many as the first word has; None for a file without words."""
    with open_lines(file) as lines:
        for word in _words(file, lines):
            if word:
                return tuple(range(len(word[0])))
    return None


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a sentence: for each wanted column the list of its words' strings."""
    known = columns(file)
    if known is None:
        return
    with open_lines(file, place=place) as lines:
        for sentence in _sentences(_words(file, lines)):
            for fields, line in sentence:
                if len(fields) != len(known):
                    raise file.error(
                        f"has {counted(len(fields), 'field')} where the first word has {len(known)}; mend the line, or "
                        f"set {file.setting}.separator or {file.setting}.comment.",
                        line=line,
                    )
            values = [[fields[column] for fields, _ in sentence] for column in wanted]
            yield values, f"{file.path}:{sentence[0][1]}", lines.place()


def _sentences(words: Iterator[Word | None]) -> Iterator[list[Word]]:
    sentence: list[Word] = []
    for word in words:
        if word:
            sentence.append(word)
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _words(file: DataFile, lines: Lines) -> Iterator[Word | None]:
    """Each word, and None for a blank line or the start of a document."""
    split = _splitter(file.source.separator)
    comment = file.source.comment
    for text in lines:
        line = text.rstrip("\r\n")
        if comment and line.startswith(comment):
            continue
        blank = not line or line.isspace() or line.startswith(DOCUMENT_START)
        yield None if blank else (split(line), lines.line)


def _splitter(separator: str | None) -> Callable[[str], list[str]]:
    if separator is None or separator == " ":
        return lambda line: WHITE_SPACE.split(line.strip(" \t"))
    return lambda line: line.split(separator)
