"""Compressed files, told by their first bytes, and what they hold, up to a limit."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from ftscale.base.errors import UserError

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Ends of names, which stand behind that of the format (`train.csv.gz`); what a file is in truth, its content tells."""

MOST_UNPACKED = 2**28
MOST_RATIO = 200
"""Times its own size that a compressed file may hold, beyond `MOST_UNPACKED` bytes: text comes to 3 to 20, zeros to
1,000 by gzip and to millions by bzip2."""

LARGE_ROW = 2**16
"""Bytes from which on the rows of a file are counted against its size."""

DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What decompressors raise for damaged data, beside an OSError without a number."""
MARKS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # the first block, or the end of an empty stream

Refuse = Callable[[str], UserError]
"""Makes the message; what it is given goes on from the file's name."""


def packing_of(head: bytes) -> str | None:
    """Return the name of the compression that a file's first bytes are of; None = they are of none."""
    if head[:3] == b"BZh" and head[4:10] in BZIP2_BLOCKS:
        return "bzip2"
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), None)


def packing_by_name(path: str) -> str | None:
    """Return the compression that a file's suffix speaks of, in either case; None = of none."""
    return SUFFIXES.get(os.path.splitext(path)[1].lower())


def without_packing(name: str) -> str:
    """Return a file's name without the suffix of its compression, `a.csv` for `a.csv.gz`."""
    return os.path.splitext(name)[0] if packing_by_name(name) else name


def is_binary(head: bytes) -> bool:
    """Whether bytes hold control characters, so that they are no text in an encoding that extends ASCII."""
    return any(byte < 32 and byte not in b"\t\n\v\f\r\x1a\x1b" for byte in head)


def unpacked(stream: BinaryIO, packing: str, *, size: int, refuse: Refuse) -> io.BufferedReader:
    """Return what a compressed stream holds, as a stream. `size`: bytes of the file that it comes from.

    Reading it raises UserError for damage, and beyond the limit.
    """
    return limited(_decompressor(stream, packing), f"is damaged or not {packing} data", size=size, refuse=refuse)


def limited(stream: Any, damage: str, *, size: int, refuse: Refuse) -> io.BufferedReader:
    """Return a decompressor's bytes, up to the limit for a file of `size` bytes. `damage`: what to say of damage."""
    return io.BufferedReader(_Unpacked(stream, damage, size=size, refuse=refuse), buffer_size=2**18)


def is_unpacked(stream: BinaryIO) -> bool:
    """Whether a stream comes from a decompressor, so that it cannot be entered at a byte at once."""
    return isinstance(stream, io.BufferedReader) and isinstance(stream.raw, _Unpacked)


class LargeRows:
    """Counts large rows of a format in which a text may be written once and stand in many rows.

    Small ones are not counted: the same prompt in each of many rows is usual.
    """

    def __init__(self, *, size: int) -> None:
        self.most = max(MOST_UNPACKED, MOST_RATIO * size)
        self._given = 0

    def are_too_many(self, size: int, *, rows: int = 1) -> bool:
        """Whether, with these rows of so many bytes in all, a file gives more than one of its size may."""
        self._given += size if size > LARGE_ROW * rows else 0
        return self._given > self.most


class _Unpacked(io.RawIOBase):
    """The bytes of a decompressor, up to `MOST_UNPACKED` and beyond it to `MOST_RATIO` times the file's size."""

    def __init__(self, stream: Any, damage: str, *, size: int, refuse: Refuse) -> None:
        self._stream, self._damage, self._refuse = stream, damage, refuse
        self._most = max(MOST_UNPACKED, MOST_RATIO * size)
        self._given = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._given = self._told(lambda: self._stream.seek(offset, whence))
        return self._given

    def tell(self) -> int:
        return self._given

    def readinto(self, buffer: Any) -> int:
        content = self._told(lambda: self._stream.read(len(buffer)))
        buffer[: len(content)] = content
        self._given += len(content)
        if self._given > self._most:
            raise self._refuse(
                f"unpacks to more than {MOST_RATIO} times its size and {MOST_UNPACKED} bytes; if that is right, unpack "
                "it, and name the file inside."
            )
        return len(content)

    def _told(self, act: Callable[[], Any]) -> Any:
        """What a decompressor does. Raises UserError where it meets damage."""
        try:
            return act()
        except DAMAGE as error:
            raise self._damaged(error) from error
        except OSError as error:  # gzip, bz2 and zstd report damage by one without a number; real I/O errors have one
            if error.errno is not None:
                raise
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return self._refuse(f"{self._damage} ({error}); copy or download it again.")


def _decompressor(stream: BinaryIO, packing: str) -> Any:
    if packing == "zstd":  # Python before 3.14 has none of its own, pyarrow is there anyhow
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(stream, "zstd"))
    if packing == "gzip":
        return gzip.GzipFile(fileobj=stream)
    return bz2.BZ2File(stream) if packing == "bzip2" else lzma.LZMAFile(stream)
