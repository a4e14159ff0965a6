"""Checkpoints: written under a temporary name, synced, renamed, with a manifest last; only what verifies is one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftscale.distributed import Distributed
from ftscale.errors import UserError
from ftscale.logs import log

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.manifest["step"]

    @property
    def progress(self) -> dict[str, Any]:
        """What the loop stored of itself."""
        return self.manifest["progress"]


def save_checkpoint(
    root: Path, distributed: Distributed, *, step: int, progress: dict[str, Any], digest: str, versions: dict[str, str]
) -> Checkpoint:
    """Write `root/step-NNNNNNNN`, complete or not at all. Collective.

    `progress`: JSON-able state of the loop; `digest`: of the configuration that determines weights and data.
    """
    folder = root / f"step-{step:08d}"
    partial = root / f".{folder.name}.partial"
    if distributed.is_main:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    distributed.save_state(partial)
    torch.save(_random_state(), partial / f"random-{distributed.rank:05d}.pt")
    distributed.barrier()
    manifest = {
        "step": step,
        "progress": progress,
        "world_size": distributed.world_size,
        "strategy": distributed.strategy,
        "config_digest": digest,
        "versions": versions,
    }
    if distributed.is_main:
        _seal(partial, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
        _sync(root)
    distributed.barrier()
    return Checkpoint(folder, manifest)


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """Checkpoints that verify, oldest first."""
    return [found for found in map(_read, _folders(root)) if isinstance(found, Checkpoint)]


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; newer ones that do not are set aside under `incomplete/` and named."""
    for folder in sorted(_folders(root), reverse=True):
        found = _read(folder)
        if isinstance(found, Checkpoint):
            return found
        aside = root / "incomplete"
        aside.mkdir(exist_ok=True)
        target = aside / folder.name
        shutil.rmtree(target, ignore_errors=True)
        os.rename(folder, target)
        log.warning("checkpoint %s is not complete (%s); set aside as %s", folder.name, found, target)
    return None


def load_checkpoint(checkpoint: Checkpoint, distributed: Distributed) -> None:
    """Restore weights, optimizer, loss scale and random states. Collective.

    Raises UserError: another strategy or number of processes than the checkpoint was made with, where that matters.
    """
    made = (checkpoint.manifest["strategy"], checkpoint.manifest["world_size"])
    if distributed.zero_stage and made != (distributed.strategy, distributed.world_size):
        raise UserError(
            f"checkpoint {checkpoint.folder} was made by {made[1]} processes with strategy {made[0]}, and this is "
            f"{distributed.world_size} with {distributed.strategy}; resume with the same."
        )
    distributed.load_state(checkpoint.folder)
    own = checkpoint.folder / f"random-{distributed.rank:05d}.pt"
    if own.is_file():
        _set_random_state(torch.load(own, map_location="cpu", weights_only=False))


def prune_checkpoints(root: Path, *, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` complete checkpoints and the one of step `best`."""
    for checkpoint in complete_checkpoints(root)[:-keep]:
        if checkpoint.step != best:
            shutil.rmtree(checkpoint.folder)


def _folders(root: Path) -> Iterator[Path]:
    return (folder for folder in sorted(root.glob("step-*")) if _NAME.fullmatch(folder.name))


def _read(folder: Path) -> Checkpoint | str:
    """The checkpoint, or why it is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return "no manifest"
    except ValueError:
        return "the manifest is torn"
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != digest:
            return f"{name} has other content than when it was written"
    return Checkpoint(folder, manifest)


def _seal(folder: Path, manifest: dict[str, Any]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest["files"] = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in files}
    for path in files:
        _sync(path)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
