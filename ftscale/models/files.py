"""The files of a base model and its processor, by hashes that change with what training takes from them."""

from __future__ import annotations

import os
from pathlib import Path

from ftscale.base.hashing import fit_to_hash_whole, hash_file, sampled_hash
from ftscale.config.schema import ModelConfig

WEIGHTS = (".safetensors", ".bin")
SETTINGS = (".json", ".jinja", ".model", ".py", ".txt")
"""Endings of files that models and processors are made from."""


def model_fingerprints(config: ModelConfig) -> dict[str, dict[str, str]]:
    """Hash the files of `model.name` and `model.processor`, by setting and path; none where nothing lies here.

    Files over 1 GiB together are known by size, time of change and three MiB of each; those in the hub's cache by the
    name that the hub gave their content.
    """
    weights = () if config.init == "random" else WEIGHTS
    found = {"model.name": _fingerprints(config.name, config.revision, endings=(*SETTINGS, *weights))}
    if config.processor:
        found["model.processor"] = _fingerprints(config.processor, None, endings=SETTINGS)
    return found


def _fingerprints(name: str, revision: str | None, *, endings: tuple[str, ...]) -> dict[str, str]:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _hashes(_files(folder, endings))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no name of the hub; that it is none is told when it is loaded
        return {}
    if not isinstance(cached, str):
        return {}
    files = _files(Path(cached).parent, endings)
    if not all(path.is_symlink() for path in files):
        return _hashes(files)
    return {f"{name}/{path.name}": path.resolve().name for path in files}


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(endings) and path.is_file())


def _hashes(files: list[Path]) -> dict[str, str]:
    if fit_to_hash_whole(files):
        return {str(path): hash_file(path) for path in files}
    return {str(path): f"{_size_and_time(path)}-{sampled_hash(path)}" for path in files}


def _size_and_time(path: Path) -> str:
    stat = os.stat(path)
    return f"{stat.st_size}-{stat.st_mtime_ns}"
