"""An optimizer's float32 copies of weights that are kept in 16 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

Groups = list[dict[str, Any]]


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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None, "no optimizer here evaluates the loss again"
        self._settings_to_inner()
        for weight, master in self._copies():
            master.data = master.data.to(weight.device)  # the model may have moved since the optimizer was built
            master.grad = None if weight.grad is None else weight.grad.float()
        self.inner.step()
        for weight, master in self._copies():
            weight.copy_(master)
            master.grad = None
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

    def _copies(self) -> Iterable[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
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


def _master(weight: torch.nn.Parameter) -> torch.nn.Parameter:
    if weight.dtype == torch.float32:
        return weight
    return torch.nn.Parameter(weight.detach().to(torch.float32, copy=True))
