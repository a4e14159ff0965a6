"""Decoded lines of a text file, with the place after the last one that was taken."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import BinaryIO

from ftscale.base.errors import UserError
from ftscale.data.formats.base import HEAD_BYTES, DataFile, Place, first_bytes, open_bytes
from ftscale.data.formats.content import has_bare_returns, wide_encoding
from ftscale.data.formats.packed import is_unpacked

LINE_LIMIT = 32 * 2**20
"""Bytes of one line (characters in UTF-16): a book is 1 to 6 MB. JSON takes up to twenty times as much in memory."""


@contextmanager
def open_lines(file: DataFile, *, place: Place | None = None, path: str | None = None) -> Iterator[Lines]:
    """The lines of a file after `place`.

    A place is `{"line": lines taken, "offset": bytes taken}`: reading goes on there at once. A compressed file, and
    an encoding that is no superset of ASCII (UTF-16), have no such offset: the place is `{"line": n}` and reading
    skips n lines.
    """
    path = path or file.path
    with open_bytes(file, path=path) as stream:
        lines = Lines(file, stream, path=path, place=place)
        check_text(file, first_bytes(stream), path)
        yield lines


class Lines:
    r"""An iterator over lines with their ends (`\n` or `\r\n`) kept; takes no line before it is asked for."""

    def __init__(self, file: DataFile, stream: BinaryIO, *, path: str, place: Place | None) -> None:
        self.line = place["line"] if place else 0
        """Lines taken."""
        self.offset = place.get("offset", 0) if place else 0
        """Bytes taken, of the lines where the file can be entered at a byte."""
        self._file, self._path, self._stream = file, path, stream
        self._encoding = known_encoding(file)
        self.is_ascii_based = is_ascii_based(self._encoding)
        """Whether a line ends with the byte of `\\n`, so that each can be decoded by itself."""
        self.place = self._offset_place if self.is_ascii_based and not is_unpacked(stream) else self._line_place
        """A function: the place after the lines taken."""

    def __iter__(self) -> Iterator[str]:
        return self._decoded_one_by_one() if self.is_ascii_based else self._decoded_as_a_stream()

    def _offset_place(self) -> Place:
        return {"line": self.line, "offset": self.offset}

    def _line_place(self) -> Place:
        return {"line": self.line}

    def _decoded_one_by_one(self) -> Iterator[str]:
        encoding = self._encoding
        skip = self.line
        if self.offset and self._stream.seekable():  # a remote file may not be
            self._stream.seek(self.offset)
            skip = 0
        for raw in islice(iter(partial(self._stream.readline, LINE_LIMIT + 1), b""), skip, None):
            if len(raw) > LINE_LIMIT:  # of which no more is read
                raise self._too_long()
            self.line += 1
            self.offset += len(raw)
            try:
                text = raw.decode(encoding)
            except UnicodeError as error:
                raise self._not_decodable(error, line=self.line) from error
            # no test for the first line: a byte-order mark means nothing elsewhere either
            yield text.removeprefix("\ufeff") if self.line == 1 else text

    def _decoded_as_a_stream(self) -> Iterator[str]:
        stream = io.TextIOWrapper(self._stream, encoding=self._encoding, newline="\n")
        try:
            for text in islice(iter(partial(stream.readline, LINE_LIMIT + 1), ""), self.line, None):
                if len(text) > LINE_LIMIT:
                    raise self._too_long()
                self.line += 1
                yield text.removeprefix("\ufeff") if self.line == 1 else text
        except UnicodeError as error:  # decoded in blocks: the line is where the block begins
            raise self._not_decodable(error, line=self.line + 1) from error

    def _too_long(self) -> UserError:
        return self._file.error(
            f"has more than the {LINE_LIMIT} bytes that a line may have; split it, or mend its line ends.",
            line=self.line + 1,
            path=self._path,
        )

    def _not_decodable(self, error: UnicodeError, *, line: int) -> UserError:
        return not_decodable(self._file, error, line=line, path=self._path)


def check_encoding(file: DataFile, head: bytes, path: str) -> None:
    """Raise UserError for the first bytes of a text in UTF-16 or UTF-32 where the setting is another encoding."""
    found = wide_encoding(head)
    if found and is_ascii_based(known_encoding(file)):
        raise UserError(
            f"{file.setting}.encoding = {file.source.encoding!r} is not that of {path}, which is {found.upper()}; set "
            f"{file.setting}.encoding: {found}."
        )


def is_ascii_based(encoding: str) -> bool:
    """Whether a line end is one byte, as in all encodings but UTF-16 and its like."""
    return "\n".encode(encoding) == b"\n"


def check_text(file: DataFile, head: bytes, path: str) -> None:
    """Raise UserError for the first bytes of a text in another encoding than is set, or with line ends of old Macs."""
    check_encoding(file, head, path)
    if is_ascii_based(known_encoding(file)) and has_bare_returns(head):
        raise file.error(
            "has lines that end in a carriage return alone, as old Macs wrote them; rewrite it with tr '\\r' '\\n' "
            "< OLD > NEW.",
            path=path,
        )


def decoded(file: DataFile, content: bytes) -> str:
    """Return the text of a whole file without a byte-order mark. Raises UserError, with the line, where it is none."""
    check_encoding(file, content[:HEAD_BYTES], file.path)
    try:
        return content.decode(known_encoding(file)).removeprefix("\ufeff")
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
        raise not_decodable(file, error, line=content.count(b"\n", 0, start) + 1) from error


def first_part(error: Exception) -> str:
    """What an error of Python says, without its advice for programmers."""
    return str(error).partition(";")[0]


def not_decodable(file: DataFile, error: UnicodeError, *, line: int, path: str | None = None) -> UserError:
    """The message for bytes that are not text in the source's encoding."""
    byte = f"byte 0x{error.object[error.start]:02x}" if isinstance(error, UnicodeDecodeError) else f"text ({error})"
    return UserError(
        f"{file.setting}.encoding = {file.source.encoding!r} cannot decode {byte} in {path or file.path}:{line}; "
        f"set {file.setting}.encoding to that of the file, e.g. latin-1, cp1252 or utf-16."
    )


def known_encoding(file: DataFile) -> str:
    """Python's name of the source's encoding. Raises UserError where it is none, or none of texts, as zlib."""
    try:
        name = codecs.lookup(file.source.encoding).name
        "\n".encode(name)
        return name
    except (LookupError, ValueError) as error:
        raise UserError(
            f"{file.setting}.encoding = {file.source.encoding!r} is not an encoding that Python knows; "
            "use e.g. utf-8, latin-1, cp1252 or utf-16."
        ) from error
