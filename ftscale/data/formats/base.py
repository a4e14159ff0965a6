"""What a format promises, the file it is given, and that file opened as bytes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Protocol

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats.archives import divided, open_inside
from ftscale.data.formats.content import foreign_content
from ftscale.data.formats.copies import open_remote
from ftscale.data.formats.packed import is_binary, packing_by_name, packing_of, unpacked

TEXT_FORMATS = ("csv", "tsv", "jsonl", "json", "text", "document", "parallel", "conll")
"""Formats whose files are text; whatever else lies in such a file is told by its first bytes."""
HEAD_BYTES = 2**16

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


@contextmanager
def open_bytes(file: DataFile, *, path: str | None = None) -> Iterator[BinaryIO]:
    """The bytes of a local or remote file (`path` where it is not the file's first), unpacked where it is compressed.

    Its first bytes tell whether it is, and not its name. Raises UserError for damage, when it is met, and for a text
    format whose file holds no text.
    """
    path = path or file.path
    refuse = partial(file.error, path=path)
    with _open_packed(file, path) as (packed, size):
        stream, head = packed, first_bytes(packed)
        if packing := packing_of(head):
            stream = unpacked(packed, packing, size=size, refuse=refuse)
            if packing_of(head := first_bytes(stream)):
                raise refuse("is compressed twice; unpack it once.")
        elif (named := packing_by_name(path)) and is_binary(head):
            raise refuse(f"is damaged or not {named} data; copy or download it again.")
        if file.format in TEXT_FORMATS and (what := foreign_content(head, setting=file.setting)):
            raise refuse(what)
        yield stream


@contextmanager
def _open_packed(file: DataFile, path: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file's own bytes, and the size of what holds them, by which the limit of unpacking is set."""
    if is_url(path):
        with open_remote(path, setting=file.setting) as opened:
            yield opened
        return
    archive, inside = divided(path)
    if inside:
        with open_inside(archive, inside, refuse=partial(file.error, path=path)) as stream:
            yield stream, os.path.getsize(archive)
        return
    check_regular(path, setting=file.setting)
    try:
        local = io.FileIO(path)
    except PermissionError as error:
        raise file.error("may not be read by this user; change its permissions.", path=path) from error
    with io.BufferedReader(local, buffer_size=2**18) as stream:
        yield stream, os.path.getsize(path)


def check_regular(path: str, *, setting: str) -> None:
    """Raise UserError for a pipe, a socket or a device, which would be waited for, or never end."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(
            f"{setting}.path = {path!r} is a pipe or a device, which cannot be read twice; write its content into a "
            "file, and name that."
        )


def first_bytes(stream: BinaryIO) -> bytes:
    """The beginning of a stream that stands at its start, where it stays."""
    assert isinstance(stream, io.BufferedReader)  # of open_bytes; a remote one may not go back
    return stream.peek(HEAD_BYTES)[:HEAD_BYTES]
