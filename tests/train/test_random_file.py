"""Random states as files: every generator goes on with the numbers that it would have drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planted import plant
from safetensors.torch import load_file, save_file

from ftscale.base.errors import UserError
from ftscale.distributed.process_state import random_state
from ftscale.train.random_file import as_bytes, load_random_state


def draw() -> list[float]:
    """From each generator; of a normal distribution, of which Python and numpy keep the second of two numbers."""
    return [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), torch.rand(1).item()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    draw()
    path = tmp_path / "random-00000.safetensors"
    path.write_bytes(as_bytes(random_state()))
    return path


def test_every_generator_goes_on_where_it_was(path: Path):
    expected = [draw() for _ in range(700)]  # beyond the 624 words that are held
    draw()
    load_random_state(path)
    assert [draw() for _ in range(700)] == expected


def test_it_is_a_file_of_safetensors(path: Path):
    tensors = load_file(path)
    assert list(tensors) == ["torch"]
    assert torch.equal(tensors["torch"], torch.get_rng_state())


CHANGES: dict[str, Any] = {
    "place": lambda texts: {**texts, "numpy": json.dumps([*json.loads(texts["numpy"])[:2], 2**31 - 1, 0, 0.0])},
    "words": lambda texts: {**texts, "numpy": json.dumps(["MT19937", [1, 2], 5, 0, 0.0])},
    "kind": lambda texts: {**texts, "numpy": json.dumps(["PCG64", *json.loads(texts["numpy"])[1:]])},
    "python": lambda texts: {**texts, "python": "[3, [1], null]"},
    "json": lambda texts: {**texts, "python": "[" * 100_000},
    "nothing": lambda texts: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_random_state_is_refused(path: Path, change: str):
    version, internal, gauss = random.getstate()
    name, words, *rest = np.random.get_state()
    texts = {
        "python": json.dumps([version, list(internal), gauss]),
        "numpy": json.dumps([name, words.tolist(), *rest]),
    }
    save_file(load_file(path), path, metadata=texts)
    load_random_state(path)
    save_file(load_file(path), path, metadata=CHANGES[change](texts))
    with pytest.raises(UserError, match="random-00000.safetensors is not what ftscale writes"):
        load_random_state(path)


def test_a_pickle_in_its_place_does_not_run(path: Path, tmp_path: Path):
    plant(path, tmp_path / "ran")
    with pytest.raises(UserError, match="random-00000.safetensors is not what ftscale writes"):
        load_random_state(path)
    assert not (tmp_path / "ran").exists()
