"""The weights of a method's extra modules, beside the saved model in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.base.sealed import sync

FILE = "extra_modules.safetensors"
PREFIX = "extra."
"""Of their names in the state of what trains."""


def save_extra(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write those of all trained weights that belong to extra modules; nothing where there are none."""
    weights = {
        name.removeprefix(PREFIX): value.contiguous() for name, value in state.items() if name.startswith(PREFIX)
    }
    if weights:
        save_file(weights, folder / FILE)
        sync([folder / FILE])


def load_extra(extra: nn.ModuleDict, folder: Path) -> bool:
    """Bring back what `save_extra` wrote; returns whether it wrote anything. Raises UserError for other weights."""
    path = folder / FILE
    if not len(extra) or not path.is_file():
        return False
    try:
        extra.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(
            f"{str(path)!r} does not hold the weights that the method makes ({str(error).splitlines()[-1].strip()}); "
            "take the method that wrote it, or move the file away to begin with new ones."
        ) from error
    return True
