"""JSON that notices damage: an object carries a hash of its own content, and its reader says what is wrong with it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from ftscale.base.files import open_new, partial_path

HASH = "hash"
"""The key whose value is the hash of all the others (XXH3, 64 bits, hexadecimal)."""


class DamagedError(Exception):
    """What is wrong with a file or a line: it is not what was written."""


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its hash, as JSON holds it."""
    content = json.loads(json.dumps({name: item for name, item in value.items() if name != HASH}))
    return {**content, HASH: content_hash(content)}


def unsealed(text: str | bytes, *, needs_hash: bool = False) -> dict[str, Any]:
    """The object that a text holds, without its hash. Raises DamagedError.

    `needs_hash`: one without a hash, as people and earlier versions write it, is damaged too.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise DamagedError("it is torn") from error
    if not isinstance(value, dict):
        raise DamagedError("it holds no object")
    digest = value.pop(HASH, None)
    if digest is None and needs_hash:
        raise DamagedError("it has no hash of its own")
    if digest is not None and digest != content_hash(value):
        raise DamagedError("it has other content than when it was written")
    return value


def write_json(path: Path, value: Mapping[str, Any], *, seal: bool = True) -> None:
    """Write an object, complete or not at all; it is on the disk when this returns.

    Numbers that are not finite become null, which JSON has. `seal`: with its hash in it.
    """
    found = finite(value)
    write_text(path, json.dumps(sealed(found) if seal else found, indent=2) + "\n")


def read_json(path: Path, *, needs_hash: bool = False) -> dict[str, Any]:
    """The object of a file. Raises FileNotFoundError; DamagedError for whatever else stands there.

    `needs_hash`: one without a hash is damaged too.
    """
    try:
        return unsealed(path.read_bytes(), needs_hash=needs_hash)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"it cannot be read ({error.strerror})") from error


def line_of(value: Mapping[str, Any]) -> str:
    """A sealed object as a line of a file."""
    return json.dumps(sealed(value)) + "\n"


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file with one a line, and how many lines were damaged; nothing where there is no file.

    A last line without its end is no damage: it was being written.
    """
    if not path.is_file():
        return [], 0
    found, damaged = [], 0
    *lines, last = path.read_bytes().split(b"\n")
    for line in lines:
        try:
            found.append(unsealed(line))
        except DamagedError:
            damaged += 1
    return found, damaged


def write_text(path: Path, text: str, *, mode: int = 0o666) -> None:
    """A file complete or not at all, and on the disk when this returns; a link in its place is replaced.

    `mode`: its permissions before the umask.
    """
    partial = partial_path(path)
    try:
        with open_new(partial, mode=mode) as file:
            file.write(text)
        sync([partial])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync([path.parent])


def sync(paths: Iterable[Path]) -> None:
    """Have the operating system write files or folders to their disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _whole(digits: str) -> int:
    """The number of these digits. Raises ValueError for one beyond a float, which ftscale writes nowhere."""
    number = int(digits)
    if abs(number) > sys.float_info.max:
        raise ValueError(f"a number of {len(digits)} digits")
    return number


def content_hash(value: Mapping[str, Any]) -> str:
    """Hash an object as JSON holds it, whatever its order and blanks."""
    text = json.dumps(finite(value), sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64(text.encode()).hexdigest()


def finite(value: Any) -> Any:
    """The value with null, which JSON has, in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
