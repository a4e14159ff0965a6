"""What may be done before an optimizer step: run the model, and gather what other ranks have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ftscale.distributed.runtime import Distributed
from ftscale.tasks.batch import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What a method may do before a step. All of it is collective: ranks call the same, equally often."""

    module: nn.Module
    """Model, method and extra modules in one, as the strategy has wrapped them."""
    distributed: Distributed
    step: int
    """The optimizer step that is to come, from 1."""

    @property
    def device(self) -> torch.device:
        """Where the model is, and where batches must be (`batch.to(context.device)`)."""
        return self.distributed.device

    def run(self, work: Callable[[nn.Module], T], *, batch: Batch | None = None, training: bool = True) -> T:
        """`work(model)` without gradients. `training`: with dropout, and it is the dropout of the step itself.

        That is so where micro-batches are run in their order, once each: the step then draws the same numbers again.
        `batch`: the one that is run, which dropout by row needs to know.
        """
        modes = [(module, module.training) for module in self.module.modules()]
        if not training:
            self.module.eval()
        try:
            with torch.no_grad():
                return self.module(run=work, batch=batch)
        finally:
            for module, mode in modes:
                module.training = mode

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """The rows (own, ...) of all ranks as one tensor (all, ...), rank by rank, and where one's own stand in it."""
        parts = self.distributed.gather_rows(rows)
        start = sum(len(part) for part in parts[: self.distributed.rank])
        return torch.cat(parts), slice(start, start + len(rows))
