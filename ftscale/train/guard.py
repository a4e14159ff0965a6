"""Losses and gradients that are not finite, or out of line: what is wrong, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import nn

from ftscale.config.schema import GuardConfig

MIN_LOSSES = 10  # of which mean and deviation are known well enough to call a loss a spike
NAMED_ROWS = 8  # rows named in an event, of each rank


class NotFiniteError(RuntimeError):
    """The guard stops the run: the checkpoints are as good as they were."""


class Statistics:
    """The running statistics of a module's batch norms, which a forward changes: kept, to be brought back."""

    def __init__(self, module: nn.Module) -> None:
        norms = [inner for inner in module.modules() if isinstance(inner, nn.modules.batchnorm._NormBase)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._kept: list[torch.Tensor] = []

    def keep(self) -> None:
        """Copy the statistics as they are now."""
        self._kept = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Bring back the statistics that `keep` copied."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)


def verdict(config: GuardConfig, losses: Sequence[float], loss: float) -> str | None:
    """What is wrong with a step's loss, in a few words; None = nothing.

    `losses`: of the steps before. A spike is a loss more than `spike_z` standard deviations above their mean.
    """
    if not math.isfinite(loss):
        return "the loss is not finite"
    if not config.spike_z or len(losses) < min(MIN_LOSSES, config.window):
        return None
    score = (loss - fmean(losses)) / max(pstdev(losses), 1e-12)
    return f"the loss {loss:.4g} is {score:.1f} deviations above its mean" if score > config.spike_z else None


def first_not_finite(module: nn.Module, forward: Callable[[], Mapping[str, torch.Tensor]]) -> str | None:
    """The first inner module whose output is not finite in `forward`, or its loss; None = all is finite."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not found and any(not torch.isfinite(tensor).all() for tensor in _floats(output)):
                found.append(name)

        return hook

    handles = [inner.register_forward_hook(look(name)) for name, inner in module.named_modules() if name]
    try:
        with torch.no_grad(), _same_draws():
            terms = forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else (None if all(map(torch.isfinite, terms.values())) else "the loss alone")


def named_rows(rows: Sequence[str]) -> list[str]:
    """The first few of many."""
    more = len(rows) - NAMED_ROWS
    return [*rows[:NAMED_ROWS], *([f"and {more} more"] if more > 0 else [])]


def _floats(output: Any) -> Iterator[torch.Tensor]:
    """The floating point tensors of a module's output."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        yield from (tensor for value in output.values() for tensor in _floats(value))
    elif isinstance(output, (list, tuple)):
        yield from (tensor for value in output for tensor in _floats(value))


@contextmanager
def _same_draws() -> Iterator[None]:
    """The random numbers drawn inside are drawn again outside."""
    with torch.random.fork_rng():
        yield
