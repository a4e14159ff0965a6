"""Copies of remote files in the cache: fetched once, whole or not there, and further where that was broken off."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from ftscale.base.errors import UserError
from ftscale.base.files import own_id, without_link
from ftscale.base.logs import log
from ftscale.base.shown import without_secrets
from ftscale.data.formats.remote import RemoteFile

BLOCK = 2**20
BUFFER = 2**20  # fsspec's remote files take a whole block for each line

_FOLDER: ContextVar[Path | None] = ContextVar("folder of copies", default=None)


@contextmanager
def copies_in(folder: Path | None) -> Iterator[None]:
    """Have remote files read from copies in a folder, inside the `with`; None = as they come over the network."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


@contextmanager
def open_remote(url: str, *, setting: str) -> Iterator[tuple[BinaryIO, int]]:
    """The bytes of a remote file, or of its copy, and its size (0 = nobody tells)."""
    with RemoteFile(url, setting=setting) as remote:
        folder = _FOLDER.get()
        raw: io.RawIOBase = remote
        if folder is not None and remote.size and len(remote.told) > 1:  # by its size alone it may be another by now
            raw = io.FileIO(str(_copied(remote, url, folder)))
        with io.BufferedReader(raw, buffer_size=BUFFER) as stream:
            yield stream, remote.size or 0


def _copied(remote: RemoteFile, url: str, folder: Path) -> Path:
    """The path of a whole copy, whose name changes with the file's ETag, date or size."""
    from filelock import FileLock

    _make(folder)
    known = json.dumps([without_secrets(url), remote.told])
    copy = without_link(folder / hashlib.sha256(known.encode()).hexdigest()[:24])
    with FileLock(without_link(copy.with_suffix(".lock"))):
        if not (copy.is_file() and copy.stat().st_size == remote.size):
            _fetch(remote, url, copy)
    return copy


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != own_id(folder):
        raise UserError(
            f"data.cache_dir: the copies in {folder} were written by another user, who may have changed them; set "
            "data.cache_dir to a folder of your own."
        )


def _fetch(remote: RemoteFile, url: str, copy: Path) -> None:
    """Fetch a file, or the rest of it. Raises UserError where the network fails, and leaves what has come."""
    part = without_link(copy.with_suffix(".part"))
    with open(part, "ab") as file:
        start = file.tell()
        if start > (remote.size or 0):
            file.truncate(0)
            start = 0
        log.info("%s: fetching bytes %d to %s, into %s", without_secrets(url), start, remote.size, copy.parent)
        remote.seek(start)
        shutil.copyfileobj(remote, file, BLOCK)
        file.flush()
        os.fsync(file.fileno())
    size = part.stat().st_size
    assert size == remote.size, f"{size} bytes of {remote.size}: reading raises where fewer come"
    os.replace(part, copy)
