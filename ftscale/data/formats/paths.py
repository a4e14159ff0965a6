"""Paths of files: those below a folder, and what to say of one that is not there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

ALIKE = 0.7  # `traim` and `train` are 0.8, `train` and `test` 0.22


def files_below(folder: str, *, hidden: tuple[str, ...]) -> list[str]:
    """Every file below a folder, as sorted paths relative to it with /, also behind linked folders.

    Names that begin with one of `hidden` are left out. A folder that links lead back to is read once.
    """
    found: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        above = _folders_above(folder, inside)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(hidden) and os.path.realpath(os.path.join(place, name)) not in above
        ]
        files = (name for name in names if not name.startswith(hidden) and os.path.isfile(os.path.join(place, name)))
        found += files if inside == "." else [f"{inside}/{name}" for name in files]
    return sorted(found)


def relative_to(path: str) -> str:
    """A sentence that says what a relative path is relative to; nothing for others."""
    return "" if os.path.isabs(path) or "://" in path else f" The path is relative to {os.getcwd()}."


def nearest_path(path: str) -> str:
    """What to do about a path that does not exist: the one that is meant, or what there is where it ends to exist."""
    known, parts = Path(path), list[str]()
    while not known.is_dir() and known != known.parent:
        known, parts = known.parent, [known.name, *parts]
    names = sorted(entry.name for entry in known.iterdir() if not entry.name.startswith(".")) if known.is_dir() else []
    for name in _alike(parts[0], names) if parts else ():
        meant = known.joinpath(name, *parts[1:])
        if meant.exists():
            return f"did you mean '{meant}'?"
        if len(parts) > 1 and (known / name).is_dir():  # the folder is meant, the file is not in it
            return f"did you mean '{known / name}'? It has {listed(sorted(os.listdir(known / name)))}."
    return f"{str(known)!r} has {listed(names)}."


def listed(names: Iterable[str], *, most: int = 8) -> str:
    """Names for a message, the first of them."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(repr(name) for name in names[:most]) or "nothing") + more


def _alike(unknown: str, names: list[str]) -> list[str]:
    """Names whose first part, before any suffix, is like that of an unknown one; nearest first."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_stem(name), []).append(name)
    close = get_close_matches(_stem(unknown), stems, n=3, cutoff=ALIKE)
    return [name for stem in close for name in sorted(stems[stem], key=lambda name: name != unknown)]


def _stem(name: str) -> str:
    return name.lstrip(".").partition(".")[0].lower() or name


def _folders_above(folder: str, inside: str) -> set[str]:
    """The real paths of a folder below another, and of those that the walk went through to it."""
    parts = [] if inside == "." else inside.split("/")
    return {os.path.realpath(os.path.join(folder, *parts[:number])) for number in range(len(parts) + 1)}
