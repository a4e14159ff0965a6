"""The cache of prepared data: folders that are whole or not there, verified at each use, and of this user alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.base.files import own_id, partial_path, remove, remove_partials, without_link
from ftscale.base.hashing import hash_file
from ftscale.base.logs import log
from ftscale.base.sealed import DamagedError, read_json, write_json
from ftscale.config.schema import DataConfig

REPORT = "report.json"


def cache_folder(data: DataConfig) -> Path:
    """Return the folder of prepared data: `data.cache_dir`, else one in the user's home."""
    return Path(data.cache_dir).expanduser() if data.cache_dir else Path.home() / ".cache" / "ftscale"


def place_of(data: DataConfig, about: Sequence[Any]) -> Path:
    """The folder in the cache of what follows from `about`, which JSON can hold."""
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    return cache_folder(data).resolve() / digest


def cached(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The report of a folder in the cache; one that is not there, or not as it was written, is built.

    `build`: fills an empty folder and returns the report, which has a hash of each file by its name under "files". Only
    one process of a machine builds; others wait for it. Raises UserError where another user wrote the folder.
    """
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    check_owner(folder)
    if (report := _verified(folder)) is not None:  # by all processes of a machine at once
        return report
    with FileLock(without_link(folder.with_name(f"{folder.name}.lock"))):
        check_owner(folder)
        if (report := _verified(folder)) is None:
            if folder.is_dir():
                log.warning("the prepared data in %s is damaged or was changed: it is prepared anew", folder)
            _build(folder, build)
            report = _verified(folder)
    assert report is not None, f"{folder} was written just now"
    return report


def check_owner(folder: Path) -> None:
    """Raise UserError where another user wrote the folder: a hash proves no origin."""
    try:
        owner = folder.stat().st_uid
    except FileNotFoundError:
        return
    if owner != own_id(folder.parent):
        raise UserError(
            f"data.cache_dir: the prepared data in {folder} was written by another user, who may have changed it; "
            "set data.cache_dir to a folder of your own."
        )


def _verified(folder: Path) -> dict[str, Any] | None:
    """The report of a folder whose files are as they were written; None: there is none, or it is damaged."""
    try:
        report = read_json(folder / REPORT, needs_hash=True)
        intact = all(hash_file(folder / name) == known for name, known in report["files"].items())
    except (OSError, DamagedError):
        return None
    return report if intact else None


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    remove_partials(folder)
    partial = partial_path(folder)
    partial.mkdir(mode=0o700)
    write_json(partial / REPORT, build(partial))
    remove(folder)
    os.rename(partial, folder)
