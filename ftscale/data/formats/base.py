"""What a format promises, the file it is given, and that file opened as bytes."""

from __future__ import annotations

import io
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import fsspec

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats.content import foreign_content

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
"""Suffix to fsspec's name of the compression."""

TEXT_FORMATS = ("csv", "tsv", "jsonl", "json", "text", "parallel", "conll")
"""Formats whose files are text; whatever else lies in such a file is told by its first bytes."""
HEAD_BYTES = 2**16
MOST_UNPACKED = 2**28
MOST_RATIO = 200
"""Times its own size that a compressed file may hold, beyond `MOST_UNPACKED` bytes: text comes to 3 to 20, zeros to
1,000 by gzip and to millions by bzip2."""

Place = dict[str, Any]
"""JSON-able place in a file just after a record; each format has its own keys."""

Record = tuple[Any, str, Place]
"""The values, where they stand (`train.csv:17`), and the place after them.

Values are a sequence in the order of `wanted` where the format knows its columns, else a dict by name.
"""


@dataclass(frozen=True)
class DataFile:
    """One file of a source (or a pair, or a folder, or a hub data set) with what is needed to read it."""

    paths: tuple[str, ...]
    """Local paths or URLs; two for `parallel`, one for all else."""
    format: str
    """A name of `formats.MODULES`."""
    source: SourceConfig
    """How to read it."""
    setting: str
    """What the source is called in messages, e.g. `data.train[0]`."""

    @property
    def path(self) -> str:
        """Return the first path, by which messages name the file; only `parallel` has a second."""
        return self.paths[0]

    def error(self, what: str, *, line: int = 0, path: str | None = None) -> UserError:
        """A mistake in this file; `what` goes on from the file's name and ends with the fix. `line` 0 = none."""
        at = f"{path or self.path}:{line}" if line else f"{path or self.path}"
        return UserError(f"{self.setting}.path: {at} {what}")


class Format(Protocol):
    """A format: a module with these two functions."""

    def columns(self, file: DataFile) -> tuple[str | int, ...] | None:
        """Names of the columns, or their numbers where they have none; None where each record has its own."""

    def records(self, file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
        """Records after `place` (None = from the start), in file order.

        wanted: numbers of the columns to give; empty where `columns` is None.
        """


def is_url(path: str) -> bool:
    """Tell whether a path begins with a scheme, such as https:// or s3://, so that fsspec fetches it."""
    return "://" in path


def compression_of(path: str) -> str | None:
    """Return fsspec's name of a file's compression by its suffix, in either case; None = not compressed."""
    return COMPRESSIONS.get(os.path.splitext(path)[1].lower())


@contextmanager
def open_bytes(file: DataFile, *, path: str | None = None) -> Iterator[BinaryIO]:
    """The decompressed bytes of a local or remote file (`path` where it is not the file's first)."""
    path = path or file.path
    compression = compression_of(path)
    if not is_url(path):
        check_regular(path, setting=file.setting)
    try:
        # zstd by pyarrow: Python before 3.14 has none of its own, pyarrow is there anyhow
        opened = fsspec.open(path, "rb", compression=None if compression == "zstd" else compression).open()
    except PermissionError as error:
        raise file.error("may not be read by this user; change its permissions.", path=path) from error
    except FileNotFoundError as error:
        if not is_url(path):
            raise
        refused = "cannot be read: its server is not there, has no such file, or refuses this name, password or token"
        raise file.error(f"{refused}; correct the URL.", path=path) from error
    with opened as stream:
        if compression == "zstd":
            stream = _zstd(stream)
        if compression is not None and not is_url(path):
            stream = io.BufferedReader(_Unpacked(stream, file, path), buffer_size=2**18)
        if compression is None and is_url(path):  # fsspec's remote files take a whole block for each line
            stream = io.BufferedReader(stream, buffer_size=2**20)
        if file.format in TEXT_FORMATS:
            with told_as_damage(file, path=path):
                head = first_bytes(stream)
            if what := foreign_content(head, setting=file.setting):
                raise file.error(what, path=path)
        yield stream


def check_regular(path: str, *, setting: str) -> None:
    """Raise UserError for a pipe, a socket or a device, which would be waited for, or never end."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(
            f"{setting}.path = {path!r} is a pipe or a device, which cannot be read twice; write its content into a "
            "file, and name that."
        )


class _Unpacked(io.RawIOBase):
    """The bytes of a decompressor, up to `MOST_UNPACKED` and beyond it to `MOST_RATIO` times the file's size."""

    def __init__(self, stream: BinaryIO, file: DataFile, path: str) -> None:
        self._stream, self._file, self._path = stream, file, path
        self._most = max(MOST_UNPACKED, MOST_RATIO * os.path.getsize(path))
        self._given = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._given = self._stream.seek(offset, whence)
        return self._given

    def tell(self) -> int:
        return self._given

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._given += len(content)
        if self._given > self._most:
            raise self._file.error(
                f"unpacks to more than {MOST_RATIO} times its size and {MOST_UNPACKED} bytes; if that is right, unpack "
                "it, and name the file inside.",
                path=self._path,
            )
        return len(content)


def first_bytes(stream: BinaryIO) -> bytes:
    """The beginning of a stream that stands at its start, where it stays."""
    if isinstance(stream, io.BufferedReader):  # a remote one may not go back
        return stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    return head


@contextmanager
def told_as_damage(file: DataFile, *, path: str | None = None) -> Iterator[None]:
    """Turns what a decompressor raises for damaged data, inside the `with`, into a UserError."""
    path = path or file.path
    compression = compression_of(path)
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(file, path, error) from error
    except OSError as error:
        # gzip, bz2 and zstd report damage as an OSError without a number; real I/O errors have one
        if compression is None or error.errno is not None:
            raise
        raise _damaged(file, path, error) from error


def _zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(stream, "zstd"))


def _damaged(file: DataFile, path: str, error: Exception) -> UserError:
    return file.error(f"is damaged or not {compression_of(path)} data ({error}); copy or download it again.", path=path)
