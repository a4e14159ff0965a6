"""ZeRO's shards of a checkpoint, cut anew for another number of processes or another stage.

The files are DeepSpeed's: a file a rank with its share of float32 weights and of the optimizer's state, and one with
buffers and, in stages 1 and 2, whole weights. Why its own universal checkpoint is not used: docs/decisions.md.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftscale.base.errors import UserError

OF_THE_RUN = ("loss_scaler", "dynamic_loss_scale", "overflow")
COUNTERS = ("global_steps", "global_samples", "skipped_steps")

State = dict[str, Any]
"""An optimizer's state of a share: names to tensors as long as the share, or to numbers; maybe nested."""
Shapes = list[dict[str, torch.Size]]
"""Weights by name, in the order in which they lie; a dict a parameter group (in stage 3, a sub-group)."""


@dataclass(frozen=True)
class Place:
    """Where in a share a weight, or this rank's part of it, lies."""

    within: slice
    first: int
    """The element of the weight that the part begins with."""


@dataclass(frozen=True)
class Share:
    """One rank's part of the flat weights of a group."""

    weights: Tensor
    """(numel,) float32, without padding at the end."""
    numel: int
    """Elements with that padding, as the optimizer's state has them."""
    state: State
    """Empty before the first step."""
    places: dict[str, Place]


Parts = dict[str, list[tuple[Share, slice]]]
"""Of each weight the shares that it lies in, and where, in the order of its elements."""
Read = Callable[[Path], dict[str, Any]]
"""A file's content; its tensors are read where they are touched."""


def cut_for(folder: Path, *, world_size: int, stage: int, read: Read) -> bool:
    """Whether the shards in a folder are those of so many processes in this stage."""
    optimizers = _optimizers(folder, read)
    return len(optimizers) == world_size and int(optimizers[0]["zero_stage"]) == stage


def check_shards(folder: Path, *, read: Read) -> None:
    """Raise UserError where a share of the optimizer's state means something only as it was cut."""
    shares = _shares(folder, read)
    for share in shares:
        for name, value in _leaves(share.state):
            if isinstance(value, Tensor) and value.ndim:
                divisible = value.is_floating_point() and value.shape == (share.numel,)
            else:
                divisible = name == "step"
            if not divisible:
                optimizers = _optimizers(folder, read)
                raise UserError(
                    f"checkpoint {folder.parent}: its optimizer's state {name} belongs to each process's whole share "
                    "of the weights (8-bit states are quantised in blocks of it), so that it cannot be cut in another "
                    f"way; resume with as many processes as made it ({len(optimizers)}, ZeRO stage "
                    f"{int(optimizers[0]['zero_stage'])})."
                )


def reshard(
    old: Path, layout: dict[Path, dict[str, Any]], shapes: Shapes, *, rank: int, world_size: int, read: Read
) -> None:
    """Write the files that this rank would save now, with the state in the folder `old` instead of its own.

    `layout`: path and content of each, as DeepSpeed made them; `shapes`: of the weights as this engine lays them.
    """
    parts: Parts = defaultdict(list)
    for share in _shares(old, read):
        for name, place in share.places.items():
            parts[name].append((share, place.within))
    for path, content in layout.items():
        if "optimizer_state_dict" in content:
            optimizer = content["optimizer_state_dict"]
            _fill_optimizer(optimizer, _shares_of(optimizer, shapes, rank, world_size), shapes, parts)
            _take_settings(optimizer, _optimizers(old, read)[0])
        else:
            before = read(_files(old, "model")[0])
            content |= {name: before[name] for name in COUNTERS}
            content["module"] = _module(content["module"], before["module"], parts)
        torch.save(content, path)


# ---------------------------------------------------------------- reading


def _files(folder: Path, kind: str) -> list[Path]:
    """Return the files by rank: zero_pp_rank_3_mp_rank_00_optim_states.pt is rank 3's."""
    return sorted(folder.glob(f"*{kind}_states.pt"), key=lambda path: int(re.findall(r"rank_(\d+)", path.name)[0]))


def _optimizers(folder: Path, read: Read) -> list[dict[str, Any]]:
    return [read(path)["optimizer_state_dict"] for path in _files(folder, "optim")]


def _keys(optimizer: dict[str, Any]) -> tuple[str, str]:
    """Names of the flat weights and of the optimizer's own state: stages 1 and 2, and stage 3."""
    if "group_paddings" in optimizer:
        return "single_partition_of_fp32_groups", "base_optimizer_state"
    return "fp32_flat_groups", "optimizer_state_dict"


def _shares(folder: Path, read: Read) -> list[Share]:
    """All shares, rank by rank."""
    shapes, optimizers = read(_files(folder, "model")[0])["param_shapes"], _optimizers(folder, read)
    world_size = len(optimizers)
    return [
        share for rank, optimizer in enumerate(optimizers) for share in _shares_of(optimizer, shapes, rank, world_size)
    ]


def _shares_of(optimizer: dict[str, Any], shapes: Shapes, rank: int, world_size: int) -> list[Share]:
    shares = []
    flat, base = _keys(optimizer)
    for index, weights in enumerate(optimizer[flat]):
        sizes = {name: math.prod(shape) for name, shape in shapes[index].items()}
        numel = weights.numel()
        if "group_paddings" in optimizer:
            numel += optimizer["group_paddings"][index]
            places = _places_in_a_row(
                sizes, optimizer["param_alignment_paddings"][index], start=rank * numel, numel=numel
            )
        else:
            places = _places_in_each(sizes, rank=rank, world_size=world_size)
        shares.append(Share(weights, numel, optimizer[base]["state"].get(index, {}), places))
    return shares


def _places_in_a_row(sizes: dict[str, int], gaps: list[int], *, start: int, numel: int) -> dict[str, Place]:
    """Stages 1 and 2 lay weights end to end, a gap after each; the share is `numel` elements from `start` on."""
    # param_slice_mappings names other places where round_robin_gradients puts the weights in another order (0.19.8)
    places, at = {}, -start
    for (name, size), gap in zip(sizes.items(), gaps, strict=True):
        within = slice(max(at, 0), min(at + size, numel))
        if within.start < within.stop:
            places[name] = Place(within, within.start - at)
        at += size + gap
    return places


def _places_in_each(sizes: dict[str, int], *, rank: int, world_size: int) -> dict[str, Place]:
    """Stage 3 cuts each weight into equal parts, the last ones padded."""
    places, at = {}, 0
    for name, size in sizes.items():
        part = math.ceil(size / world_size)
        places[name] = Place(slice(at, at + max(0, min(part, size - rank * part))), rank * part)
        at += part
    return places


def _leaves(state: State) -> Iterator[tuple[str, Any]]:
    for name, value in state.items():
        yield from _leaves(value) if isinstance(value, dict) else [(name, value)]


# ---------------------------------------------------------------- cutting


def _fill_optimizer(optimizer: dict[str, Any], shares: list[Share], shapes: Shapes, parts: Parts) -> None:
    """Put weights and state of these shares where DeepSpeed keeps them in its file."""
    flat, base = _keys(optimizer)
    optimizer[flat] = [_fill(share.places, parts, share.weights.numel(), _weights) for share in shares]
    optimizer[base]["state"] = {}
    for index, share in enumerate(shares):
        like = parts[next(iter(shapes[index]))][0][0].state  # of the same group
        if like:
            optimizer[base]["state"][index] = _fill_state(like, share, parts, lambda other: other.state)


def _fill_state(like: State, share: Share, parts: Parts, get: Callable[[Share], State]) -> State:
    filled: State = {}
    for name, value in like.items():

        def get_value(other: Share, name: str = name) -> Any:
            return get(other)[name]

        if isinstance(value, dict):
            filled[name] = _fill_state(value, share, parts, get_value)
        elif isinstance(value, Tensor) and value.ndim:
            filled[name] = _fill(share.places, parts, share.numel, get_value)
        else:
            filled[name] = value
    return filled


def _weights(share: Share) -> Tensor:
    return share.weights


def _fill(places: dict[str, Place], parts: Parts, numel: int, get: Callable[[Share], Tensor]) -> Tensor:
    """A flat tensor with what `get` finds in the parts at its places, zeros elsewhere."""
    filled = torch.zeros(numel, dtype=torch.float32)
    for name, place in places.items():
        stop = place.first + place.within.stop - place.within.start
        filled[place.within] = _cut([get(share)[within] for share, within in parts[name]], place.first, stop)
    return filled


def _cut(tensors: list[Tensor], start: int, stop: int) -> Tensor:
    """Elements `start` to `stop` of the tensors laid end to end."""
    found = []
    for tensor in tensors:
        found.append(tensor[max(start, 0) : max(stop, 0)])
        start, stop = start - tensor.numel(), stop - tensor.numel()
    return torch.cat(found)


def _take_settings(optimizer: dict[str, Any], before: dict[str, Any]) -> None:
    """Loss scale, and the settings of each parameter group, such as its learning rate."""
    optimizer |= {name: before[name] for name in OF_THE_RUN}
    groups, groups_before = (state[_keys(state)[1]]["param_groups"] for state in (optimizer, before))
    for group, settings in zip(groups, groups_before, strict=True):
        group |= {name: value for name, value in settings.items() if name != "params"}


def _module(wanted: dict[str, Tensor], before: dict[str, Tensor], parts: Parts) -> dict[str, Tensor]:
    """Buffers, and the weights that the engine keeps whole; stage 3 has most of them in its shares alone."""
    module = {}
    for name, like in wanted.items():
        if name in parts and like.numel():
            whole = torch.cat([share.weights[within] for share, within in parts[name]])
            module[name] = whole.view_as(like).to(like.dtype)
        elif name in before and before[name].shape == like.shape:
            module[name] = before[name].clone()
    return module
