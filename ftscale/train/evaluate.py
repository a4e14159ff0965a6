"""Scores a data set with the model as it stands, on all ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ftscale.config import Config
from ftscale.data.batching import Division, Ranks
from ftscale.data.loader import evaluation_batches
from ftscale.data.prepare import Prepared
from ftscale.distributed import Distributed
from ftscale.logs import log
from ftscale.tasks.base import Layout, Task
from ftscale.train.preemption import Interrupted, StopRequest

SAY_S = 30.0
"""Between two lines on how far an evaluation is: a long one is to be told from one that hangs."""


def evaluate(
    task: Task,
    distributed: Distributed,
    batches: Iterable[dict[str, Any]],
    *,
    num_rows: int,
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
    said = time.monotonic()
    with torch.no_grad():
        for batch in batches:
            if stop_request is not None and distributed.any(bool(stop_request)):
                raise Interrupted
            outputs = distributed.module(to_device(batch, distributed.device), processor=processor)
            evaluator.update(outputs, batch)
            if time.monotonic() - said > SAY_S:
                said = time.monotonic()
                scored = min(len(evaluator.records) * distributed.world_size, num_rows)
                log.info("evaluating: about %d of %d rows", scored, num_rows)
    for records in distributed.gather_objects(evaluator.records):
        evaluator.merge(records)
    return evaluator.compute()


def evaluation_of(
    config: Config,
    task: Task,
    processor: Any,
    rows: Prepared,
    distributed: Distributed,
    *,
    layout: Layout,
    stop_request: StopRequest | None = None,
) -> Callable[[], dict[str, float]]:
    """A function that scores the rows with the model as it stands. Collective; see `evaluate`."""
    collate = task.collator(processor, layout=layout, train=False)
    batch = config.batch
    if config.evaluation.micro_size:
        batch = batch.model_copy(update={"micro_size": config.evaluation.micro_size, "micro_tokens": 0})
    lengths = np.asarray(rows.dataset["length"])
    samples = rows.dataset.remove_columns(["length", "targets", "where"])

    def run() -> dict[str, float]:
        batches = evaluation_batches(
            samples,
            lengths,
            collate,
            division=Division(batch, flat=layout == "flat"),
            ranks=Ranks(distributed.rank, distributed.world_size),
            seed=config.seed,
        )
        return evaluate(
            task, distributed, batches, num_rows=len(lengths), processor=processor, stop_request=stop_request
        )

    return run


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
