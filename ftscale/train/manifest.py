"""What makes a folder a checkpoint: a manifest, written last, of its files' sizes and hashes, and a hash of itself."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from ftscale.base.files import open_new, remove, without_link
from ftscale.base.hashing import hash_file
from ftscale.base.logs import log
from ftscale.base.sealed import DamagedError, sealed, sync, unsealed
from ftscale.config.strategies import STRATEGIES
from ftscale.train.random_file import file_name

MANIFEST = "manifest.json"
INCOMPLETE = "incomplete"
"""Folder beside the checkpoints for what turned out not to be one."""
_NAME = re.compile(r"step-(\d{8})")
_PARTIAL = re.compile(r"\.(step-\d{8})\.partial")

Files = dict[str, tuple[int, str]]
"""Relative path to size in bytes and hash of the content (XXH3, 128 bits, hexadecimal)."""

Fits = Callable[[dict[str, Any]], str]
"""Why the state in a manifest is not one to go on from; "" = it is."""


class Manifest(BaseModel):
    """Every field of a manifest."""

    model_config = ConfigDict(strict=True, extra="forbid")

    step: NonNegativeInt
    metric: float | None
    progress: dict[str, Any]
    world_size: PositiveInt
    strategy: str
    run_id: str
    config_digest: str
    versions: dict[str, str]
    config: dict[str, Any] = {}
    """All settings of the run."""
    data_digest: str = ""
    """Hash of what data.json says."""
    dropout: Literal["by_row", "by_process"] = "by_process"
    """How it draws."""
    files: dict[str, tuple[NonNegativeInt, Annotated[str, Field(pattern="^[0-9a-f]{32}$")]]]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Return the optimizer steps that were done when the checkpoint was written."""
        return self.manifest["step"]

    @property
    def progress(self) -> dict[str, Any]:
        """What the loop stored of itself."""
        return self.manifest["progress"]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(size for size, _ in self.manifest["files"].values())


@dataclass(frozen=True)
class Listed:
    """A folder among the checkpoints, complete or not."""

    folder: Path
    checkpoint: Checkpoint | None
    """None where it is not complete."""
    reason: str
    """Why it is not complete; "" where it is."""


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:08d}"


def partial_folder(root: Path, step: int) -> Path:
    """Where a checkpoint is written before it is complete."""
    return root / f".{folder_name(step)}.partial"


def list_checkpoints(root: Path, *, run_id: str | None = None) -> list[Listed]:
    """Every checkpoint and what should have been one, verified, oldest first; those set aside come last."""

    def look(folder: Path, reason: str = "") -> Listed:
        found = reason or read_checkpoint(folder, run_id=run_id)
        return Listed(folder, found, "") if isinstance(found, Checkpoint) else Listed(folder, None, found)

    return [
        *map(look, _folders(root)),
        *(look(folder, "it was not finished") for folder in _partial_folders(root)),
        *(look(folder, "it was set aside") for folder in _folders(root / INCOMPLETE)),
    ]


def latest_checkpoint(root: Path, *, run_id: str | None = None, fits: Fits = lambda progress: "") -> Checkpoint | None:
    """The newest checkpoint that verifies; what is newer, or was never finished, is set aside and named in the log.

    `run_id`: of the run that it must be of; None = any.
    """
    for folder in _partial_folders(root):
        _set_aside(folder, "it was not finished")
    for folder in reversed(_folders(root)):
        found = read_checkpoint(folder, run_id=run_id)
        if isinstance(found, Checkpoint) and not (reason := fits(found.progress)):
            return found
        _set_aside(folder, reason if isinstance(found, Checkpoint) else found)
    return None


def newest_manifest(root: Path) -> dict[str, Any] | None:
    """What the newest checkpoint says whose manifest and files' sizes are right; nothing is set aside."""
    found = (read_checkpoint(folder, contents=False) for folder in reversed(_folders(root)))
    return next((item.manifest for item in found if isinstance(item, Checkpoint)), None)


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """Checkpoints that verify, oldest first."""
    return [found for found in map(read_checkpoint, _folders(root)) if isinstance(found, Checkpoint)]


def prune_checkpoints(root: Path, *, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` complete checkpoints and the one of step `best`.

    Contents are not read again: each verified when it was written, the newest a moment ago.
    """
    found = [read_checkpoint(folder, contents=False) for folder in _folders(root)]
    for checkpoint in [item for item in found if isinstance(item, Checkpoint)][:-keep]:
        if checkpoint.step != best:
            remove(checkpoint.folder)


def read_checkpoint(folder: Path, *, run_id: str | None = None, contents: bool = True) -> Checkpoint | str:
    """The checkpoint, or why it is none. `contents`: the files' hashes are compared, not only their sizes."""
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return "no manifest"
    except OSError as error:  # also a file where the folder should be
        return f"the manifest cannot be read ({error.strerror})"
    if run_id is not None and _is_of_another_run(text, run_id):
        return "it belongs to another run"
    try:
        manifest = unsealed(text, needs_hash=True)
    except DamagedError as error:
        return "the manifest is torn" if str(error) == "it is torn" else f"the manifest is damaged: {error}"
    if problem := _problem(manifest, folder):
        return f"the manifest is damaged: {problem}"
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        try:
            if contents and hash_file(path) != digest:
                return f"{name} has other content than when it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return Checkpoint(folder, manifest)


def _is_of_another_run(text: bytes, run_id: str) -> bool:
    """Whether a manifest names another run, whatever else is wrong with it."""
    try:
        return json.loads(text).get("run_id", run_id) != run_id
    except (ValueError, AttributeError, RecursionError):
        return False


def _problem(manifest: dict[str, Any], folder: Path) -> str:
    """What is wrong with a manifest's fields; "" = nothing."""
    try:
        Manifest.model_validate_json(json.dumps(manifest))  # as JSON, in which a tuple is a list
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if folder_name(manifest["step"]) != folder.name:
        return f"it is of step {manifest['step']}"
    if manifest["strategy"] not in STRATEGIES:
        return f"strategy {manifest['strategy']!r} is not known"
    names = manifest["files"]
    if outside := [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]:
        return f"{outside[0]} lies outside of the checkpoint"
    ranks = {file_name(rank) for rank in range(manifest["world_size"])}
    if absent := sorted(ranks - names.keys()):
        return f"it names no {absent[0]}"
    if ranks == names.keys():
        return "it names no weights"
    return ""


def seal(folder: Path, final: Path, manifest: Mapping[str, Any], files: Files) -> None:
    """Write the manifest last, and give the folder its final name; durable when this returns."""
    path = folder / MANIFEST
    with open_new(path) as file:
        file.write(json.dumps(sealed({**manifest, "files": files}), indent=1))
    sync([path, *(item for item in folder.rglob("*") if item.is_dir()), folder])
    remove(final)  # a checkpoint of this step that was not complete
    os.rename(folder, final)
    sync([final.parent])


def _folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.glob("step-*") if _NAME.fullmatch(folder.name))


def _partial_folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.glob(".step-*.partial") if _PARTIAL.fullmatch(folder.name))


def _set_aside(folder: Path, reason: str) -> None:
    found = _PARTIAL.fullmatch(folder.name)
    target = folder.parent / INCOMPLETE / (found.group(1) if found else folder.name)
    without_link(target.parent).mkdir(exist_ok=True)
    remove(target)
    os.rename(folder, target)
    log.warning("checkpoint %s is not complete (%s); set aside as %s", folder.name, reason, target)
