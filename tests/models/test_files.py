"""Fingerprints of base models: folders, the hub's cache, and what is too large to be hashed whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftscale.base import hashing
from ftscale.config.schema import ModelConfig
from ftscale.models.files import model_fingerprints


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "README.md"):
        (path / name).write_text(name)
    return path


def test_files_that_a_model_is_made_from_count_and_no_others(tmp_path: Path):
    made, processor = folder(tmp_path / "base"), folder(tmp_path / "words")
    found = model_fingerprints(ModelConfig(name=str(made), processor=str(processor)))
    assert {setting: {Path(path).name for path in files} for setting, files in found.items()} == {
        "model.name": {"config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt"},
        "model.processor": {"config.json", "vocab.txt"},
    }
    random = model_fingerprints(ModelConfig(name=str(made), init="random"))["model.name"]
    assert {Path(path).name for path in random} == {"config.json", "vocab.txt"}


@pytest.mark.parametrize("large", [False, True])
def test_a_changed_file_has_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool):
    if large:
        monkeypatch.setattr(hashing, "HASHED_WHOLE_BYTES", 0)
    made = folder(tmp_path / "base")
    config = ModelConfig(name=str(made))
    before, weights = model_fingerprints(config)["model.name"], made / "model.safetensors"
    times = weights.stat().st_atime_ns, weights.stat().st_mtime_ns
    weights.write_text("model.safetensorz")
    os.utime(weights, ns=times)  # of one size and time
    after = model_fingerprints(config)["model.name"]
    assert {path for path in before if before[path] != after[path]} == {str(weights)}
    weights.write_text("model.safetensors")
    os.utime(weights, ns=(1, 1))
    assert (model_fingerprints(config)["model.name"] == before) is not large  # a large one is known by its time too


def test_files_of_the_hubs_cache_are_known_by_their_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    root = tmp_path / "models--some--model"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text("c0ffee")
    (root / "snapshots/c0ffee").mkdir(parents=True)
    for name, blob in (("config.json", "a1"), ("model.safetensors", "b2")):
        (root / "blobs" / blob).write_text("{}")
        (root / "snapshots/c0ffee" / name).symlink_to(root / "blobs" / blob)
    found = model_fingerprints(ModelConfig(name="some/model"))
    assert found == {"model.name": {"some/model/config.json": "a1", "some/model/model.safetensors": "b2"}}


@pytest.mark.parametrize("name", ["no/such", "not a name", "a/b/c"])
def test_a_name_of_nothing_here_has_no_files(name: str):
    assert model_fingerprints(ModelConfig(name=name)) == {"model.name": {}}
