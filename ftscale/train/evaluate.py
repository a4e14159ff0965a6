"""Scores a data set with the model as it stands, on all ranks together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ftscale.distributed import Distributed
from ftscale.tasks.base import Task
from ftscale.train.preemption import Interrupted, StopRequest


def evaluate(
    task: Task,
    distributed: Distributed,
    batches: Iterable[dict[str, Any]],
    *,
    processor: Any,
    stop_request: StopRequest | None = None,
) -> dict[str, float]:
    """Metrics of all rows, the same on every rank. Collective: every rank must bring the same number of batches.

    The model is in eval mode inside; the caller puts it back into training. Raises Interrupted on all ranks, between
    two batches, when one of them has a `stop_request`.
    """
    evaluator = task.evaluator()
    distributed.share_buffers()  # every rank scores its rows with the statistics that will be saved
    distributed.module.eval()
    with torch.no_grad():
        for batch in batches:
            if stop_request is not None and distributed.any(bool(stop_request)):
                raise Interrupted
            outputs = distributed.module(to_device(batch, distributed.device), processor=processor)
            evaluator.update(outputs, batch)
    for records in distributed.gather_objects(evaluator.records):
        evaluator.merge(records)
    return evaluator.compute()


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
