"""The loop: step, log, evaluate, save, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftscale.config.schema import CheckpointConfig, EvaluationConfig, TrainConfig
from ftscale.distributed import Distributed
from ftscale.errors import UserError, unknown_name
from ftscale.logs import log
from ftscale.tasks.base import Batch, Task
from ftscale.train.checkpoint import Checkpoint, complete_checkpoints, prune_checkpoints
from ftscale.train.evaluate import to_device
from ftscale.train.meters import MetricsFile, peak_memory_bytes, progress_bar
from ftscale.train.preemption import StopRequest


class TaskModule(nn.Module):
    """Model and task as the one module that DDP and DeepSpeed wrap: its forward is the loss, or the outputs."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    @property
    def config(self) -> Any:
        """The model's own config: DeepSpeed sizes its buckets by it."""
        return self.model.config

    def forward(self, batch: Batch, processor: Any = None) -> Any:
        """Sum of the loss over the batch's targets; in eval mode, the task's outputs."""
        return self.task.loss(self.model, batch) if self.training else self.task.outputs(self.model, batch, processor)


@dataclass
class Progress:
    """What the loop knows of itself between steps; stored in each checkpoint."""

    step: int = 0
    """Optimizer steps done; the position in the data order follows from it."""
    tokens: int = 0
    """Tokens trained on, over all ranks."""
    targets: int = 0
    """Targets trained on, over all ranks."""
    best_step: int | None = None
    best_metric: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    bad_evaluations: int = 0
    """Evaluations since the best one."""
    elapsed_s: float = 0.0
    """Time spent training, over all starts of the run."""


class Step(Protocol):
    """This rank's part of an optimizer step: micro-batches with whether they count, and the global counts."""

    micro_batches: list[tuple[Batch, bool]]
    targets: int
    tokens: int


@dataclass
class Loop:
    """Everything that training touches, handed in by the composition root."""

    task: Task
    distributed: Distributed
    schedule: Any
    steps: Callable[[int], Iterator[Step]]
    """Optimizer steps from the given number on."""
    num_steps: int
    train: TrainConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    evaluation_steps: frozenset[int]
    """Steps after which to evaluate (and, where the config does not say, to save)."""
    evaluate: Callable[[], dict[str, float]] | None
    set_training_mode: Callable[[], None]
    advance_schedule: Callable[[float], None]
    """Called with each step's loss."""
    after_update: Callable[[int], None]
    """Called with the number of the step when weights are new and gradients still there."""
    save: Callable[[Progress], Checkpoint]
    checkpoints: Path
    metrics: MetricsFile
    stop_request: StopRequest
    best_metric: tuple[str, bool]
    """Name of the metric that chooses the best checkpoint, and whether higher is better."""


class NotFiniteError(RuntimeError):
    """A loss or gradient that is not a finite number: the weights of the last checkpoint are the last good ones."""


def run_loop(loop: Loop, progress: Progress) -> str:
    """Train from where `progress` stands; returns completed, stopped_early or preempted."""
    started = time.perf_counter() - progress.elapsed_s
    first = progress.step == 0 and loop.evaluation.before and loop.evaluate and not progress.last_metrics
    if first and _evaluate(loop, progress):
        loop.save(progress)
    if _out_of_patience(loop, progress):  # killed between its last checkpoint and its result
        return "stopped_early"
    loop.set_training_mode()
    steps = loop.steps(progress.step)
    with progress_bar(total=loop.num_steps, done=progress.step, enabled=loop.distributed.is_main) as advance:
        while progress.step < loop.num_steps:
            tick = time.perf_counter()
            if (data := next(steps, None)) is None:  # a stream can end before the number of steps is reached
                log.info("the data ended at step %d of %d", progress.step, loop.num_steps)
                break
            figures = _train_step(loop, progress, data)
            progress.elapsed_s = time.perf_counter() - started
            stop = figures.pop("stop") > 0
            _report(loop, progress, figures, seconds=time.perf_counter() - tick)
            advance(f"loss {figures['loss']:.4f}")
            if (status := _after_step(loop, progress, stop=stop)) is not None:
                return status
    return "completed"


def _train_step(loop: Loop, progress: Progress, data: Step) -> dict[str, float]:
    """One optimizer step over this rank's micro-batches; figures agreed by all ranks."""
    distributed, micro_batches, targets = loop.distributed, data.micro_batches, data.targets
    # times world size: DDP and DeepSpeed average gradients over ranks, the global count already covers all of them
    scale = distributed.world_size / max(targets, 1)
    total = torch.zeros((), dtype=torch.float32, device=distributed.device)
    counted = torch.zeros((), dtype=torch.int64, device=distributed.device)
    for index, (batch, real) in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        batch = to_device(batch, distributed.device)
        with distributed.micro_batch(last=last):
            loss: Tensor = distributed.module(batch)
            distributed.backward(loss * (scale * real), last=last)
        if real:
            total += loss.detach().float()
            counted += loop.task.count(batch)
    agreed = distributed.sum({"loss": float(total), "targets": float(counted), "stop": float(bool(loop.stop_request))})
    assert agreed["targets"] == targets, (
        f"step {progress.step}: {agreed['targets']} targets in batches, {targets} announced"
    )
    if not math.isfinite(agreed["loss"]):
        raise NotFiniteError(_not_finite(loop, progress, "loss", agreed["loss"]))
    lr = loop.schedule.get_last_lr()[0]
    grad_norm = distributed.step(after_update=lambda: loop.after_update(progress.step + 1))
    if not math.isfinite(grad_norm) and distributed.precision != "fp16":  # fp16 skips such a step and lowers its scale
        raise NotFiniteError(_not_finite(loop, progress, "gradient norm", grad_norm))
    loop.advance_schedule(agreed["loss"] / max(targets, 1))
    progress.tokens += data.tokens
    progress.targets += targets
    progress.step += 1
    return {
        "loss": agreed["loss"] / max(targets, 1),
        "grad_norm": grad_norm,
        "lr": lr,
        "tokens": data.tokens,
        "targets": targets,
        "stop": agreed["stop"],
    }


def _report(loop: Loop, progress: Progress, figures: dict[str, float], *, seconds: float) -> None:
    rate = figures["tokens"] / max(seconds, 1e-9)
    memory = peak_memory_bytes()
    loop.metrics.write("train", progress.step, **figures, tokens_per_s=round(rate, 1), memory_bytes=memory)
    loop.distributed.accelerator.log({name: figures[name] for name in ("loss", "grad_norm", "lr")}, step=progress.step)
    if progress.step % loop.train.log_every == 0 or progress.step in (1, loop.num_steps):
        left = (loop.num_steps - progress.step) * progress.elapsed_s / progress.step
        log.info(
            "step %d/%d  loss %.4f  grad norm %.3g  lr %.3g  %.0f tokens/s  %.1f GiB  %s left",
            progress.step,
            loop.num_steps,
            figures["loss"],
            figures["grad_norm"],
            figures["lr"],
            rate,
            memory / 2**30,
            duration(left),
        )


def _after_step(loop: Loop, progress: Progress, *, stop: bool) -> str | None:
    """Evaluate, save and stop as this step asks; returns the status when training ends here."""
    step, last = progress.step, progress.step == loop.num_steps
    improved = False
    if stop and not last:
        loop.save(progress)
        loop.metrics.write("event", step, event="preempted", signal=loop.stop_request.signal)
        log.info("asked to stop (%s): checkpoint of step %d written", loop.stop_request.signal or "another rank", step)
        return "preempted"
    if loop.evaluate and step in loop.evaluation_steps:
        improved = _evaluate(loop, progress)
        loop.set_training_mode()
    every = loop.checkpoint.every
    due = step % every == 0 if every else step in loop.evaluation_steps
    if due or improved or last:
        loop.save(progress)
        if loop.distributed.is_main:
            prune_checkpoints(loop.checkpoints, keep=loop.checkpoint.keep, best=progress.best_step)
    if _out_of_patience(loop, progress):
        log.info("no better %s in %d evaluations: stopping", loop.best_metric[0], loop.evaluation.patience)
        loop.metrics.write("event", step, event="stopped_early")
        return "stopped_early"
    return None


def _out_of_patience(loop: Loop, progress: Progress) -> bool:
    patience = loop.evaluation.patience
    return bool(patience) and progress.bad_evaluations >= patience and progress.step < loop.num_steps


def _evaluate(loop: Loop, progress: Progress) -> bool:
    """Score the evaluation rows; returns whether this is the best so far."""
    assert loop.evaluate is not None
    metrics = loop.evaluate()
    name, higher = loop.best_metric
    if name not in metrics:
        raise UserError(unknown_name("evaluation.metric", name, metrics))
    value, best = metrics[name], progress.best_metric
    progress.last_metrics = metrics
    improved = math.isfinite(value) and (best is None or (value > best if higher else value < best))
    if improved:
        progress.best_metric, progress.best_step, progress.best_metrics = value, progress.step, metrics
        progress.bad_evaluations = 0
    else:
        progress.bad_evaluations += 1
    loop.metrics.write("eval", progress.step, **metrics)
    loop.distributed.accelerator.log({f"eval/{key}": value for key, value in metrics.items()}, step=progress.step)
    shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items() if "/" not in key)
    log.info("evaluation at step %d: %s%s", progress.step, shown, "  (best)" if improved else "")
    return improved


def best_checkpoint(loop: Loop, progress: Progress) -> Checkpoint | None:
    """The checkpoint of the best evaluation, where it is not the last step."""
    if not (loop.evaluate and loop.evaluation.keep_best) or progress.best_step in (None, progress.step):
        return None
    found = [item for item in complete_checkpoints(loop.checkpoints) if item.step == progress.best_step]
    return found[0] if found else None


def as_dict(progress: Progress) -> dict[str, Any]:
    """Progress as JSON holds it."""
    return asdict(progress)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, short."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else (f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s")


def _not_finite(loop: Loop, progress: Progress, what: str, value: float) -> str:
    loop.metrics.write("event", progress.step, event="not_finite", what=what, value=value)
    return (
        f"the {what} of optimizer step {progress.step + 1} is {value}; the run stops, its checkpoints are as good as "
        "they were. Look for a faulty row, mend it and resume; or lower optimizer.lr, or train in fp32 or bf16, in a "
        "new run_folder."
    )
