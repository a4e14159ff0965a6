"""Weights are pulled to a slow average of themselves: a gradient rule with a state, as FedProx has one without."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import nn

from ftscale.config.own_method import OwnMethodSettings
from ftscale.methods.base import Method
from ftscale.models.gradient_rule import GradientRule


class PulledSettings(OwnMethodSettings):
    """The task's loss, and a gradient that leads back to where the weights have been."""

    has_rule: ClassVar = True
    name: Literal["pulled"] = "pulled"
    """The method."""
    strength: NonNegativeFloat = 0.5
    """What the distance to the average is multiplied by, before it is added to the gradient."""


class Pulled(Method):
    """What is learned is the task's."""

    def gradient_rule(self, module: nn.Module) -> GradientRule:
        return Pull(module, self.own.strength)


class Pull(GradientRule):
    """The average moves halfway to the weights after each update."""

    def __init__(self, module: nn.Module, strength: float) -> None:
        self.strength = strength
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.called: list[tuple[str, int]] = []

    def before_step(self, *, step: int) -> None:
        self.called.append(("before_step", step))

    def after_backward(self, *, step: int) -> None:
        self.called.append(("after_backward", step))
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.add_(weight.detach() - self.average[name].to(weight.device), alpha=self.strength)

    @torch.no_grad()
    def after_update(self, *, step: int) -> None:
        self.called.append(("after_update", step))
        for name, weight in self.weights.items():
            self.average[name] = (self.average[name].to(weight.device) + weight) / 2

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        assert state is not None
        self.average = state["average"]
