"""A rank's random state as a file: numbers of torch as safetensors, those of Python and numpy as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ftscale.base.tensor_files import refusal
from ftscale.distributed.process_state import set_random_state

NUMPY_WORDS = 624  # of its Mersenne twister; numpy does not check the place among them that it is given


def file_name(rank: int) -> str:
    """The file of a rank in a checkpoint."""
    return f"random-{rank:05d}.safetensors"


def as_bytes(state: dict[str, Any]) -> bytes:
    """The file's content for what `distributed.random_state` gave."""
    name, words, place, *gauss = state["numpy"]
    texts = {"python": json.dumps(state["python"]), "numpy": json.dumps([name, words.tolist(), place, *gauss])}
    devices = {f"cuda.{number}": value for number, value in enumerate(state["cuda"])}
    return save({"torch": state["torch"], **devices}, metadata=texts)


def load_random_state(path: Path) -> None:
    """Have the generators go on from a file. Raises UserError: it holds something else."""
    try:
        with safe_open(path, framework="pt") as file:
            texts = {name: json.loads(text) for name, text in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        version, internal, gauss = texts["python"]
        name, words, place, *rest = texts["numpy"]
        if place not in range(NUMPY_WORDS + 1):
            raise ValueError(f"numpy's place {place} is not in 0 to {NUMPY_WORDS}")
        set_random_state(
            {
                "python": (version, tuple(internal), gauss),
                "numpy": (name, np.array(words, dtype=np.uint32), place, *rest),
                "torch": tensors["torch"],
                "cuda": [tensors[f"cuda.{number}"] for number in range(len(tensors) - 1)],
            }
        )
    except (
        SafetensorError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise refusal(path, error) from error
