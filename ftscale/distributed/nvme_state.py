"""What zero3_nvme keeps on a disk, float32 weights and the optimizer's state, saved and loaded a sub-group a time.

DeepSpeed's own checkpoint of it copies the raw files of what had been swapped out and restores nothing else: neither
weights too small for that, nor those that the model computes with, nor the optimizer's step (measured with 0.19.8: a
resumed run began with the weights of the base model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.base.tensor_files import load_tensors


def save_swapped(engine: Any, folder: Path, write: Callable[[Any, Path], None], *, rank: int) -> None:
    """Have this rank's part written: a file for each of ZeRO-3's sub-groups, and one for the rest.

    `write(value, path)`: as of Distributed.save_state.
    """
    own = _own(folder, rank)
    own.mkdir(parents=True, exist_ok=True)
    zero = engine.optimizer
    for number, weight in _sub_groups(zero, write_back=False):
        state = {name: _copy(value) for name, value in zero.state[weight].items()}
        write({"weight": _copy(weight.data), "state": state}, _file(own, number))
    scaler = {name: value for name, value in vars(zero.loss_scaler).items() if isinstance(value, (int, float))}
    settings = [{name: group[name] for name in group if name != "params"} for group in zero.param_groups]
    rest = {"buffers": dict(engine.module.named_buffers()), "settings": settings, "loss_scaler": scaler}
    write(rest, own / "rest.pt")


@torch.no_grad()
def load_swapped(engine: Any, folder: Path, *, rank: int) -> None:
    """Read it back, as many processes as wrote it. Collective. Raises UserError: other weights were trained then."""
    own, zero = _own(folder, rank), engine.optimizer
    zero.checkpoint_event_prologue()
    for number, weight in _sub_groups(zero, write_back=True):
        path = _file(own, number)
        saved = load_tensors(path) if path.is_file() else None
        if saved is None or saved["weight"].numel() != weight.numel():
            raise UserError(
                f"the checkpoint {folder.parent} does not fit the model: its trained weights are others; resume with "
                "the configuration it was made with."
            )
        weight.data.copy_(saved["weight"])
        _fill(zero.state[weight], saved["state"])
        zero._reassign_or_swap_out_partitioned_parameters(number)  # into the weights that the model computes with
    zero.checkpoint_event_epilogue()
    rest = load_tensors(own / "rest.pt")
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(rest["buffers"][name])
    for group, settings in zip(zero.param_groups, rest["settings"], strict=True):
        group.update(settings)
    vars(zero.loss_scaler).update(rest["loss_scaler"])


def _sub_groups(zero: Any, *, write_back: bool) -> Iterator[tuple[int, nn.Parameter]]:
    """Number and flat float32 share of each, which lies in memory with its state until the next one is asked for."""
    swapper = zero.optimizer_swapper
    for number, weight in enumerate(zero.fp32_partitioned_groups_flat):
        swapped = swapper.is_swappable_tensor(numel=zero.fp16_partitioned_groups_flat_numel[number])
        if swapped:
            swapper.swap_in_optimizer_state(weight, None)
        yield number, weight
        if swapped and write_back:
            swapper.swap_out_optimizer_state(weight)
        elif swapped:
            swapper.release_swap_buffers(weight)


def _fill(state: dict[str, Any], saved: dict[str, Any]) -> None:
    """Tensors in their places; a state that was saved before the first step is empty, and this one starts anew."""
    for name, value in saved.items():
        if isinstance(value, Tensor) and name in state:
            state[name].copy_(value)
        else:
            state[name] = value
    for name in state.keys() - saved.keys():
        state[name] = state[name].zero_() if isinstance(state[name], Tensor) else 0


def _copy(value: Any) -> Any:
    """Copy a tensor by itself, since it is a part of a large buffer."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _own(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}"


def _file(own: Path, number: int) -> Path:
    return own / f"sub-group-{number:05d}.pt"
