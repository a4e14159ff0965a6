"""What probes of a model share.

The transformers model inside its wrappers, a forward pass without traces, and the kind of device a tensor stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_pretended: ContextVar[str | None] = ContextVar("pretended", default=None)


def device_kind(tensor: Tensor) -> str:
    """cpu, cuda, ...: of the tensor's device, or as `pretending` says."""
    return _pretended.get() or tensor.device.type


@contextmanager
def pretending(kind: str) -> Iterator[None]:
    """Inside, kernels and chunks are chosen as on this kind of device: a forecast's tensors are in no memory at all."""
    token = _pretended.set(kind)
    try:
        yield
    finally:
        _pretended.reset(token)


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The outermost transformers model inside PEFT, DDP or engine wrappers (or the model itself).

    Raises TypeError where there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise TypeError(f"{type(model).__name__} holds no transformers model")


def logits_of(output: Any) -> Tensor:
    """A transformers model's output as one tensor: its logits; those of start and end side by side (..., 2)."""
    if "logits" in output:
        return output.logits
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; each module's own mode (frozen ones stay in eval) is put back after.

    No dropout means that no random number is drawn, so that a probe does not change a run.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
