"""Scores a data set with the model as it stands, on all ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import torch

from ftscale.base.logs import log
from ftscale.config import Config
from ftscale.data.batching import Division, Ranks
from ftscale.data.loader import evaluation_batches
from ftscale.data.prepare import Prepared
from ftscale.distributed.runtime import Distributed
from ftscale.modalities.collate import Layout
from ftscale.tasks.base import Evaluator, Task, collate_samples
from ftscale.tasks.batch import Batch
from ftscale.train.stop_request import Interrupted, StopRequest

SAY_S = 30.0
"""Between two lines on how far an evaluation is: a long one is to be told from one that hangs."""


def evaluate(
    task: Task,
    distributed: Distributed,
    batches: Iterable[Batch],
    *,
    num_rows: int,
    stop_request: StopRequest | None = None,
) -> Evaluator:
    """All rows scored, the same on every rank. Collective: every rank must bring the same number of batches.

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
            outputs = distributed.module(batch=batch.to(distributed.device))
            evaluator.update(outputs, batch)
            if time.monotonic() - said > SAY_S:
                said = time.monotonic()
                scored = min(len(evaluator.records) * distributed.world_size, num_rows)
                log.info("evaluating: about %d of %d rows", scored, num_rows)
    for records in distributed.gather_objects(evaluator.records):
        evaluator.merge(records)
    return evaluator


def evaluation_of(
    config: Config,
    task: Task,
    rows: Prepared,
    distributed: Distributed,
    *,
    layout: Layout,
    stop_request: StopRequest | None = None,
) -> Callable[[], Evaluator]:
    """A function that scores the rows with the model as it stands. Collective; see `evaluate`."""
    collate = partial(collate_samples, task, layout=layout, train=False)

    def run() -> Evaluator:
        batches = evaluation_batches(
            rows,
            collate,
            division=evaluation_division(config, flat=layout == "flat"),
            ranks=Ranks(distributed.rank, distributed.world_size),
            seed=config.seed,
        )
        return evaluate(task, distributed, batches, num_rows=len(rows), stop_request=stop_request)

    return run


def evaluation_division(config: Config, *, flat: bool) -> Division:
    """How rows are divided that are only looked at: as in training, or as `evaluation.micro_size` says."""
    batch = config.batch
    if config.evaluation.micro_size:
        batch = batch.model_copy(update={"micro_size": config.evaluation.micro_size, "micro_tokens": 0})
    return Division(batch, flat=flat)
