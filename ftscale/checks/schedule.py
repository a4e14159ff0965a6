"""The run's arithmetic: steps, learning rates, checkpoints, evaluations, and how a global batch comes about."""

from __future__ import annotations

import math
from typing import Any

from ftscale.checks.sample import DataSample
from ftscale.config import Config
from ftscale.data.batching import describe_batch


def describe_schedule(config: Config, sample: DataSample, *, world_size: int, layout: str | None) -> dict[str, Any]:
    """Steps an epoch and in all (None where rows are not counted), learning rates, checkpoints, evaluations, batch.

    With a sample of the rows, those that would be dropped are estimated by their share in it, and so is what a step
    of `batch.unit: targets` holds.
    """
    per_epoch = steps_per_epoch(config, sample)
    total = config.train.max_steps or (max(1, round(per_epoch * config.train.epochs)) if per_epoch else None)
    facts: dict[str, Any] = {
        "steps_per_epoch": per_epoch,
        "total_steps": total,
        "exact": sample.train.whole or bool(config.train.max_steps),
        "batch": describe_batch(config.batch, world_size=world_size, layout=layout),
    }
    if total:
        facts["learning_rate"] = learning_rates(config, num_steps=total)
        facts["evaluations"] = _moments(config.evaluation.every, total, per_epoch) if _evaluates(config) else 0
        facts["checkpoints"] = _moments(config.checkpoint.every or config.evaluation.every, total, per_epoch)
    return facts


def steps_per_epoch(config: Config, sample: DataSample) -> int | None:
    """Optimizer steps of a pass over the training rows."""
    train, rows = sample.train, training_rows(config, sample)
    if rows is None:
        return None
    if config.batch.unit == "targets":
        rows *= sum(item.targets for item in train.kept) / max(len(train.kept), 1)
    return max(1, math.ceil(rows / config.batch.global_size))


def training_rows(config: Config, sample: DataSample) -> float | None:
    """Rows of a pass over the training data, those that are held out or dropped left out; None = not counted."""
    train = sample.train
    if train.num_rows is None or not train.rows:
        return None
    weights = [source.weight for source in config.data.train]
    return train.num_rows * (len(train.kept) / len(train.rows)) * (sum(weights) / len(weights))


def learning_rates(config: Config, *, num_steps: int) -> dict[str, float]:
    """Ask the schedule for the learning rates of the first step, the end of warm-up, half way, and the last step."""
    import torch

    from ftscale.optim.schedules import build_schedule, check_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=config.optimizer.lr)
    schedule = build_schedule(optimizer, config.schedule, num_steps=num_steps)
    warm = check_schedule(config.schedule, num_steps=num_steps)
    wanted = {"start": 0, "after_warmup": min(warm, num_steps - 1), "half": num_steps // 2, "end": num_steps - 1}
    if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        (factor,) = schedule.lr_lambdas
        return {name: config.optimizer.lr * factor(step) for name, step in wanted.items()}
    return dict.fromkeys(wanted, config.optimizer.lr)  # these go by the loss


def _evaluates(config: Config) -> bool:
    return bool(config.data.eval or config.data.eval_ratio)


def _moments(every: int, total: int, per_epoch: int | None) -> int:
    """Count the moments that come every so many steps, or at the epochs' ends; the last step is one."""
    every = every or per_epoch or total
    return math.ceil(total / every)
