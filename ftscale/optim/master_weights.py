"""An optimizer's float32 copies of weights that are kept in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

Groups = list[dict[str, Any]]
Pair = tuple[torch.nn.Parameter, torch.nn.Parameter]
"""A weight of the model and its float32 copy."""

CHUNK = 2**24
"""Elements whose float32 gradients exist at a time (64 MiB), or those of the largest weight. MiniLM on one CPU thread:
4.5 ms to convert all gradients into memory that is kept, 25 ms into fresh memory."""


class MasterWeights(Optimizer):
    """Steps an inner optimizer on float32 copies of the 16-bit weights, then rounds them back.

    An update smaller than half a unit in bfloat16's last place (2^-9 of the weight) would otherwise be lost.
    `param_groups` hold the model's own weights and the settings that count (`lr` for a schedule): the settings are
    handed to the inner optimizer at each step. Weights in float32 are stepped as they are.

    `groups`: parameter groups; `build`: makes the inner optimizer from groups.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], build: Callable[[Groups], Optimizer]) -> None:
        super().__init__(list(groups), {})
        self.masters = [[_master(weight) for weight in group["params"]] for group in self.param_groups]
        self.inner = build(
            [{**group, "params": masters} for group, masters in zip(self.param_groups, self.masters, strict=True)]
        )
        self._settings_from_inner()
        self._scratch: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step the inner optimizer on the float32 copies, chunk by chunk, and round them back into the model."""
        assert closure is None, "no optimizer here evaluates the loss again"
        self._settings_to_inner()
        plain = [(weight, weight.grad) for weight in self._without_copy() if weight.grad is not None]
        for chunk in self._chunks() or [[]]:
            self._convert_gradients(chunk)
            self.inner.step()
            for weight, master in chunk:
                weight.copy_(master)
                master.grad = None
            for weight, _ in plain:  # stepped with the first chunk
                weight.grad = None
        for weight, gradient in plain:
            weight.grad = gradient
        return None

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state, and the float32 weights, which the model's rounded ones cannot bring back."""
        self._settings_to_inner()
        return {
            "inner": self.inner.state_dict(),
            "masters": [[master.data for master in group] for group in self.masters],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring back a saved state, and the model's weights with it."""
        self.inner.load_state_dict(state_dict["inner"])
        for masters, saved in zip(self.masters, state_dict["masters"], strict=True):
            for master, value in zip(masters, saved, strict=True):
                master.copy_(value)
        for weight, master in self._copies():
            weight.copy_(master)
        self._settings_from_inner()

    def _chunks(self) -> list[list[Pair]]:
        """Weights that have a gradient, so many together that their float32 gradients fit into CHUNK."""
        chunks: list[list[Pair]] = []
        room = 0
        for weight, master in self._copies():
            if weight.grad is None:
                continue
            if not chunks or room < _aligned(weight):
                chunks.append([])
                room = max(CHUNK, _aligned(weight))
            chunks[-1].append((weight, master))
            room -= _aligned(weight)
        return chunks

    def _convert_gradients(self, chunk: list[Pair]) -> None:
        size, start = sum(_aligned(weight) for weight, _ in chunk), 0
        for weight, master in chunk:
            master.data = master.data.to(weight.device)  # the model may have moved since the optimizer was built
            scratch = self._scratch
            if scratch is None or scratch.numel() < size or scratch.device != weight.device:
                scratch = self._scratch = torch.empty(size, dtype=torch.float32, device=weight.device)
            # in the master's own order of memory: a fused optimizer reads both as plain memory
            master.grad = scratch.as_strided(master.shape, master.stride(), start).copy_(weight.grad)
            start += _aligned(weight)

    def _without_copy(self) -> Iterable[torch.nn.Parameter]:
        for group, masters in zip(self.param_groups, self.masters, strict=True):
            yield from (weight for weight, master in zip(group["params"], masters, strict=True) if master is weight)

    def _copies(self) -> Iterable[Pair]:
        for group, masters in zip(self.param_groups, self.masters, strict=True):
            for weight, master in zip(group["params"], masters, strict=True):
                if master is not weight:
                    yield weight, master

    def _settings_to_inner(self) -> None:
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({name: value for name, value in group.items() if name != "params"})

    def _settings_from_inner(self) -> None:
        for group, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            group.update({name: value for name, value in inner.items() if name != "params"})


def _aligned(weight: torch.Tensor) -> int:
    """Elements of the scratch memory for a weight: whole 256 bytes, as fast kernels like them."""
    return -(-weight.numel() // 64) * 64


def _master(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    if weight.dtype == torch.float32:
        return weight
    return torch.nn.Parameter(weight.detach().to(torch.float32, copy=True))
