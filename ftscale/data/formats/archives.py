"""Zip archives, which are read as folders are: `films.zip/train.csv` is a file of it.

Nothing is ever extracted to disk, so that the names inside an archive can lead nowhere.
"""

from __future__ import annotations

import glob
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from ftscale.base.errors import UserError
from ftscale.data.formats.content import ZIP, is_document
from ftscale.data.formats.packed import DAMAGE, Refuse, limited
from ftscale.data.formats.splits import matches

HIDDEN = ("", ".", "_")
"""First characters of names that are left out: `__MACOSX/`, `.git/`, `/etc/`, `../`."""
FAULTS = (*DAMAGE, OSError, ValueError, OverflowError, NotImplementedError, RuntimeError)
"""What zipfile raises for archives that are damaged, locked by a password, or compressed in a way it does not know."""


def is_archive(path: str) -> bool:
    """Whether a path is a local zip archive by its content, and no document that is one inside, as a workbook is."""
    if not os.path.isfile(path) or not os.access(path, os.R_OK):
        return False
    with open(path, "rb") as stream:
        head = stream.read(256)
    return head.startswith(ZIP) and not is_document(head)


def divided(path: str) -> tuple[str, str]:
    """Return the archive that a path leads into and the file's name (or pattern) inside it; else the path and ""."""
    outer = path
    while "/" in outer and "://" not in path and not os.path.exists(outer):
        outer = os.path.dirname(outer)
        if is_archive(outer):
            return outer, path[len(outer) + 1 :]
    return path, ""


def is_file(path: str, *, setting: str) -> bool:
    """Whether a path is a file, or one inside an archive."""
    archive, inside = divided(path)
    return inside in _infos(archive, setting) if inside else os.path.isfile(path)


def exists(path: str, *, setting: str) -> bool:
    """Whether a path is there, on disk or inside an archive."""
    return os.path.exists(path) or is_file(path, setting=setting)


def size_of(path: str, *, setting: str) -> int:
    """Return the bytes of a file, of one inside an archive as it says of itself."""
    archive, inside = divided(path)
    return _infos(archive, setting)[inside].file_size if inside else os.path.getsize(path)


def files_inside(archive: str, *, setting: str) -> list[str]:
    """Return the paths of an archive's files, sorted; as of a folder, hidden ones are left out.

    Raises UserError for an archive that cannot be read. `setting`: what its source is called.
    """
    names = (name for name in _infos(archive, setting) if not any(part[:1] in HIDDEN for part in name.split("/")))
    return [f"{archive}/{name}" for name in sorted(names)]


def matching(archive: str, pattern: str, *, setting: str) -> list[str]:
    """Return the paths of an archive's files that a name or a pattern (`*.csv`) takes, sorted."""
    files = {file.removeprefix(f"{archive}/"): file for file in files_inside(archive, setting=setting)}
    if glob.has_magic(pattern):
        return [file for name, file in files.items() if matches(name, pattern)]
    return [f"{archive}/{pattern}"] if pattern in _infos(archive, setting) else []


@contextmanager
def open_inside(archive: str, name: str, *, refuse: Refuse) -> Iterator[io.BufferedReader]:
    """Open a file inside an archive, up to the limits of a compressed file."""
    try:
        stream = _archive(archive).open(name)
    except (*FAULTS, KeyError) as error:
        raise refuse(_unread(error)) from error
    with stream:
        yield limited(stream, "is damaged in its zip archive", size=os.path.getsize(archive), refuse=refuse)


def _infos(archive: str, setting: str) -> dict[str, zipfile.ZipInfo]:
    """What an archive tells of its files, by their names."""
    try:
        return {info.filename: info for info in _archive(archive).infolist() if not info.is_dir()}
    except FAULTS as error:
        raise UserError(f"{setting}.path: {archive} {_unread(error)}") from error


def _archive(path: str) -> zipfile.ZipFile:
    told = os.stat(path)
    return _opened(path, told.st_size, told.st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _opened(path: str, *version: int) -> zipfile.ZipFile:
    """An archive that stays open, since it may have 50,000 files, whose names are read whenever it is opened.

    `version`: what changes with its content, and the process, since processes do not share a place in a file.
    """
    return zipfile.ZipFile(path)


def _unread(error: Exception) -> str:
    if isinstance(error, RuntimeError) and "password" in str(error):
        return "is locked by a password; unpack it, and name the file inside."
    if isinstance(error, NotImplementedError):
        return f"is compressed in a way that is not read ({error}); unpack it, and name the file inside."
    return f"is damaged or no zip archive ({error}); copy or download it again."
