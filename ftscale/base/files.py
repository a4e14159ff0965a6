"""Files and folders in places where others may write too: no link is followed, and no name of a file to be is known."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO


def partial_path(path: Path) -> Path:
    """Where a file or folder is written before it has its name: beside it, under a name that nobody can have taken."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def remove_partials(path: Path) -> None:
    """Delete what writers of this file or folder, killed meanwhile, have left beside it."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        remove(left)


def open_new(path: Path, *, mode: int = 0o666, newline: str | None = None) -> TextIO:
    """A new text file, opened for writing; `mode`: permissions before the umask.

    Raises FileExistsError, for a link too.
    """
    return open(path, "x", encoding="utf-8", newline=newline, opener=partial(_open, mode=mode))


def open_new_bytes(path: Path) -> BinaryIO:
    """A new file of bytes, opened for writing. Raises FileExistsError, for a link too."""
    return open(path, "xb", opener=_open)


def open_to_append(path: Path) -> TextIO:
    """A text file, opened for writing at its end, a line at a time; a link or a pipe in its place is deleted first."""
    return open(without_link(path), "a", encoding="utf-8", buffering=1, opener=_open)


def without_link(path: Path) -> Path:
    """The path, at which afterwards stands no link, pipe or device."""
    with suppress(FileNotFoundError):
        kind = path.lstat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            path.unlink()
    return path


def remove(path: Path) -> None:
    """Delete a file, a link (and nothing that it leads to) or a folder with all that is in it.

    Where there is none of them, nothing happens.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def follow_umask(folder: Path) -> None:
    """Give every file below a folder the permissions of one that is simply made in it.

    safetensors 0.8 writes a file that nobody else may read, whatever the umask says, and renames it.
    """
    probe = partial_path(folder / "mode")
    with open_new(probe) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    probe.unlink()
    for path in filter(Path.is_file, folder.rglob("*")):
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def own_id(folder: Path) -> int:
    """The number of this user on the folder's file system: a network's may have another one than this machine."""
    with tempfile.TemporaryFile(dir=folder) as own:
        return os.fstat(own.fileno()).st_uid


def _open(path: str, flags: int, mode: int = 0o666) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, mode)
