"""The loop: step, log, evaluate, save, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftscale.config.schema import CheckpointConfig, EvaluationConfig, GuardConfig, TrainConfig
from ftscale.distributed import Distributed
from ftscale.errors import UserError, counted, unknown_name
from ftscale.logs import log
from ftscale.models.attention import padded_attention
from ftscale.tasks.base import Batch, Task
from ftscale.train.checkpoint import Saver
from ftscale.train.evaluate import to_device
from ftscale.train.guard import NotFiniteError, Statistics, first_not_finite, named_rows, verdict
from ftscale.train.manifest import Checkpoint, complete_checkpoints
from ftscale.train.meters import MetricsFile, peak_memory_bytes, progress_bar, rows_hash
from ftscale.train.preemption import Interrupted, StopRequest


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

    def forward(self, batch: Batch, processor: Any = None, *, plain: bool = False) -> Any:
        """Sum of the loss over the batch's targets; in eval mode, the task's outputs, or `plain` the model's logits."""
        if plain:
            with padded_attention(self.model):
                return self.model(**batch).logits
        return self.task.loss(self.model, batch) if self.training else self.task.outputs(self.model, batch, processor)


@dataclass
class Progress:
    """What the loop knows of itself between steps; stored in each checkpoint."""

    step: int = 0
    """Global batches gone through; the position in the data order follows from it."""
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
    metric_moved: bool = False
    """The metric that chooses had two values or more so far."""
    evaluated: int = -1
    """The step of the last evaluation; -1 = none yet."""
    losses: list[float] = field(default_factory=list)
    """Of the last good steps, as many as the guard looks at."""
    bad_in_row: int = 0
    """Global batches that the guard has just left out, one after another."""
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
    steps: Callable[[int], Generator[Step, None, None]]
    """Optimizer steps from the given number on."""
    num_steps: int
    train: TrainConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    evaluation_steps: frozenset[int]
    """Steps after which to evaluate (and, where the config does not say, to save)."""
    evaluate: Callable[[], dict[str, float]] | None
    """Raises Interrupted on all ranks when one is asked to stop meanwhile."""
    set_training_mode: Callable[[], None]
    advance_schedule: Callable[[float], None]
    """Called with each step's loss."""
    after_update: Callable[[int], None]
    """Called with the number of the step when weights are new and gradients still there."""
    state: Callable[[Progress], dict[str, Any]]
    """Progress and all else that a checkpoint's manifest holds, JSON-able."""
    saver: Saver
    after_save: Callable[[], None]
    where: Callable[[int], str]
    """Where a row of this rank's micro-batches was read: file and line."""
    metrics: MetricsFile
    stop_request: StopRequest
    best_metric: tuple[str, bool]
    """Name of the metric that chooses the best checkpoint, and whether higher is better."""
    statistics: Statistics
    """Of the module's batch norms."""
    saved: int = -1
    """The step of the newest checkpoint; -1 = none."""


def run_loop(loop: Loop, progress: Progress) -> str:
    """Train from where `progress` stands; returns completed, stopped_early or preempted."""
    started = time.perf_counter() - progress.elapsed_s
    loop.set_training_mode()
    stop = loop.distributed.any(bool(loop.stop_request))
    bar = progress_bar(total=loop.num_steps, done=progress.step, enabled=loop.distributed.is_main)
    with closing(loop.steps(progress.step)) as steps, bar as advance:  # its worker processes end with it
        while (status := _between_steps(loop, progress, stop=stop)) is None:
            tick = time.perf_counter()
            figures = _train_step(loop, progress, next(steps))
            progress.elapsed_s = time.perf_counter() - started
            stop, save_failed = figures.pop("stop") > 0, figures.pop("save_failed") > 0
            _report(loop, progress, figures, seconds=time.perf_counter() - tick)
            advance(f"loss {figures['loss']:.4f}")
            if save_failed:
                loop.saver.wait()
    return status


def _between_steps(loop: Loop, progress: Progress, *, stop: bool) -> str | None:
    """Evaluate, save and stop as this step asks; returns the status when training ends here.

    What was done before a kill is not done again: a resumed run comes here first.
    """
    step, last = progress.step, progress.step >= loop.num_steps
    if stop and not last:
        return _preempted(loop, progress)
    due = step in loop.evaluation_steps or (step == 0 and loop.evaluation.before)
    improved = False
    if loop.evaluate and due and progress.evaluated != step:
        try:
            improved = _evaluate(loop, progress)
        except Interrupted:
            return _preempted(loop, progress)
        finally:
            loop.set_training_mode()
    every = loop.checkpoint.every
    save = step > 0 and (step % every == 0 if every else step in loop.evaluation_steps)
    if (save or improved or last) and loop.saved != step:
        _save(loop, progress)
        loop.after_save()
    if _out_of_patience(loop, progress):
        log.info("no better %s in %s: stopping", loop.best_metric[0], counted(loop.evaluation.patience, "evaluation"))
        loop.metrics.write("event", step, event="stopped_early")
        return "stopped_early"
    return "completed" if last else None


def _preempted(loop: Loop, progress: Progress) -> str:
    if loop.saved != progress.step:
        _save(loop, progress, at_once=True)
    loop.saver.wait()
    reason = loop.stop_request.reason or "another rank"
    loop.metrics.write("event", progress.step, event="preempted", reason=reason)
    log.info("asked to stop (%s): checkpoint of step %d written", reason, progress.step)
    return "preempted"


def _save(loop: Loop, progress: Progress, *, at_once: bool = False) -> None:
    best, metric = progress.best_step, progress.last_metrics.get(loop.best_metric[0])
    loop.metrics.sync()  # no line before a checkpoint is lost where the machine is, or its disk
    loop.saver.save(progress.step, loop.state(progress), best=best, metric=metric, at_once=at_once)
    loop.saved = progress.step
    loop.metrics.write("event", progress.step, event="saved", blocked_s=round(loop.saver.blocked_s, 4))


def _train_step(loop: Loop, progress: Progress, data: Step) -> dict[str, float]:
    """One optimizer step over this rank's micro-batches; figures agreed by all ranks."""
    distributed, targets = loop.distributed, data.targets
    # times world size: DDP and DeepSpeed average gradients over ranks, the global count already covers all of them
    scale = distributed.world_size / max(targets, 1)
    total = torch.zeros((), dtype=torch.float32, device=distributed.device)
    counted = torch.zeros((), dtype=torch.int64, device=distributed.device)
    loop.statistics.keep()
    bad: str | None = None
    agreed: dict[str, float] = {}
    for index, (batch, real) in enumerate(data.micro_batches):
        last = index == len(data.micro_batches) - 1
        batch = to_device(batch, distributed.device)
        with distributed.micro_batch(last=last):
            loss: Tensor = distributed.module(batch)
            if real:
                total += loss.detach().float()
                counted += loop.task.count(batch)
            if last:  # agreed before the gradients are whole, so that a bad batch can still be kept out of them
                agreed = _agree(loop, data, total=total, counted=counted)
                bad = verdict(loop.guard, progress.losses, agreed["loss"] / max(targets, 1))
            # gradients that are not finite are dropped whatever the strategy
            distributed.backward(loss * (scale * real * (math.nan if bad else 1.0)), last=last)
    assert agreed["targets"] == targets, (
        f"step {progress.step}: {agreed['targets']} targets in batches, {targets} announced"
    )
    lr, mean = loop.schedule.get_last_lr()[0], agreed["loss"] / max(targets, 1)
    grad_norm = distributed.step(after_update=lambda: loop.after_update(progress.step + 1))
    # fp16 skips a step whose gradients overflow and lowers its scale
    if not bad and not math.isfinite(grad_norm) and distributed.precision != "fp16":
        bad = "the gradient is not finite"
    loop.advance_schedule(mean)
    progress.tokens += data.tokens
    progress.targets += targets
    progress.step += 1
    if bad:
        _bad_batch(loop, progress, data, bad)
    else:
        progress.bad_in_row = 0
        progress.losses = [*progress.losses, mean][-loop.guard.window :] if loop.guard.spike_z else []
    return {
        "loss": mean,
        "grad_norm": grad_norm,
        "lr": lr,
        "tokens": data.tokens,
        "targets": targets,
        "rows_hash": int(agreed["rows_hash"]),
        "stop": agreed["stop"],
        "save_failed": agreed["save_failed"],
    }


def _agree(loop: Loop, data: Step, *, total: Tensor, counted: Tensor) -> dict[str, float]:
    """The step's one all-reduce besides the gradients'."""
    return loop.distributed.sum(
        {
            "loss": float(total),
            "targets": float(counted),
            "rows_hash": float(sum(rows_hash(batch["row"]) for batch, real in data.micro_batches if real)),
            "stop": float(bool(loop.stop_request)),
            "save_failed": float(loop.saver.failed),
        }
    )


def _bad_batch(loop: Loop, progress: Progress, data: Step, what: str) -> None:
    """Name the culprits, then stop, skip or rewind; the weights have not seen the batch. Collective."""
    progress.bad_in_row += 1
    step, guard = progress.step, loop.guard
    found = _culprits(loop, data)
    loop.statistics.restore()
    policy: str = guard.policy if progress.bad_in_row <= guard.limit else "stop"
    loop.metrics.write("event", step, event="bad_batch", what=what, action=policy, culprits=found)
    named = "; ".join(
        f"rank {item['rank']}: {item['module'] or 'no output of a module is to blame'}, rows {', '.join(item['rows'])}"
        for item in found
    )
    log.warning("optimizer step %d: %s (%s)", step, what, named)
    if policy == "rewind":
        policy = _rewind(loop, progress)
    if policy == "stop":
        bounded = f", {progress.bad_in_row} bad batches in a row" if progress.bad_in_row > guard.limit else ""
        raise NotFiniteError(
            f"optimizer step {step}: {what}{bounded}; nothing of it was applied, and the checkpoints are as good as "
            f"they were. First not finite: {named}. Mend the rows and resume; or set "
            "guard.policy: skip; or lower optimizer.lr, or train in fp32 or bf16, in a new run_folder."
        )


def _culprits(loop: Loop, data: Step) -> list[dict[str, Any]]:
    """For each rank with outputs that are not finite: its first such module, and the rows of that micro-batch.

    Where all outputs are finite (the gradient alone is not, or the loss is a spike): each rank with all its rows. Each
    micro-batch goes through the model once more, on all ranks alike: under ZeRO-3 a forward is collective.
    """
    guilty: dict[str, Any] | None = None
    rows: list[str] = []
    for batch, real in data.micro_batches:
        batch = to_device(batch, loop.distributed.device)
        module = first_not_finite(loop.distributed.unwrapped, partial(loop.distributed.module, batch))
        own = [loop.where(row) for row in batch["row"].tolist()] if real else []
        rows += own
        if guilty is None and own and module is not None:
            guilty = {"rank": loop.distributed.rank, "module": module, "rows": named_rows(own)}
    everything = {"rank": loop.distributed.rank, "module": None, "rows": named_rows(rows)}
    found = loop.distributed.gather_objects((guilty, everything))
    return [item for item, _ in found if item] or [item for _, item in found]


def _rewind(loop: Loop, progress: Progress) -> str:
    """Back to the weights and the optimizer of the newest checkpoint; the data goes on behind the bad batch."""
    loop.saver.wait()
    found = None
    if loop.distributed.is_main:
        found = next(reversed(complete_checkpoints(loop.saver.root)), None)
    checkpoint = loop.distributed.gather_objects(found)[0]
    if checkpoint is None:
        log.warning("guard.policy = rewind, but there is no checkpoint yet to go back to")
        return "stop"
    loop.distributed.load_state(checkpoint.folder)
    loop.metrics.write("event", progress.step, event="rewound", to=checkpoint.step)
    log.warning("back to the weights of step %d, on with the batch after step %d", checkpoint.step, progress.step)
    return "rewind"


def _report(loop: Loop, progress: Progress, figures: dict[str, float], *, seconds: float) -> None:
    rate = figures["tokens"] / max(seconds, 1e-9)
    memory = peak_memory_bytes()
    loop.metrics.write("train", progress.step, **figures, tokens_per_s=round(rate, 1), memory_bytes=memory)
    loop.distributed.accelerator.log({name: figures[name] for name in ("loss", "grad_norm", "lr")}, step=progress.step)
    if progress.step % loop.train.log_every == 0 or progress.step in (1, loop.num_steps):
        left = (loop.num_steps - progress.step) * progress.elapsed_s / progress.step
        log.info(
            "step %d/%d  loss %.4f  grad norm %.3g  lr %.3g  %.0f %s/s  %.1f GiB  %s left",
            progress.step,
            loop.num_steps,
            figures["loss"],
            figures["grad_norm"],
            figures["lr"],
            rate,
            "tokens" if loop.task.processor_class == "tokenizer" else "images",
            memory / 2**30,
            duration(left),
        )


def _out_of_patience(loop: Loop, progress: Progress) -> bool:
    patience = loop.evaluation.patience
    return bool(patience) and progress.bad_evaluations >= patience and progress.step < loop.num_steps


def _evaluate(loop: Loop, progress: Progress) -> bool:
    """Score the evaluation rows; returns whether this is the best so far."""
    assert loop.evaluate is not None
    metrics = loop.evaluate()
    name, higher = loop.best_metric
    if name not in metrics and "/" not in name:  # a single class may be in no row and no prediction
        raise UserError(unknown_name("evaluation.metric", name, metrics))
    value, before = metrics.get(name, math.nan), progress.last_metrics.get(name, math.nan)
    first = progress.evaluated < 0
    progress.metric_moved |= not first and value != before and not (math.isnan(value) and math.isnan(before))
    progress.last_metrics, progress.evaluated = metrics, progress.step
    improved = _is_better(metrics, value, progress, higher=higher)
    if improved:
        progress.best_metric, progress.best_step, progress.best_metrics = value, progress.step, metrics
        progress.bad_evaluations = 0
    else:
        progress.bad_evaluations += 1
    if not first and not progress.metric_moved:
        log.warning(
            "%s has been %s at every evaluation since the start: it tells no checkpoint from another, so that the "
            "lower loss chooses; name another in evaluation.metric if it stays so",
            name,
            f"{value:.4g}",
        )
    loop.metrics.write("eval", progress.step, **metrics)
    loop.distributed.accelerator.log({f"eval/{key}": value for key, value in metrics.items()}, step=progress.step)
    shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items() if "/" not in key)
    log.info("evaluation at step %d: %s%s", progress.step, shown, "  (best)" if improved else "")
    return improved


def _is_better(metrics: dict[str, float], value: float, progress: Progress, *, higher: bool) -> bool:
    """Whether this evaluation is the best so far; of two with one value of the metric, the one of the lower loss."""
    best = progress.best_metric
    if not math.isfinite(value) or best is None:
        return math.isfinite(value)
    if value == best:
        return metrics["loss"] < progress.best_metrics["loss"]
    return value > best if higher else value < best


def best_checkpoint(loop: Loop, progress: Progress) -> Checkpoint | None:
    """The checkpoint of the best evaluation, where it is not the last step."""
    if not (loop.evaluate and loop.evaluation.keep_best) or progress.best_step in (None, progress.step):
        return None
    found = [item for item in complete_checkpoints(loop.saver.root) if item.step == progress.best_step]
    return found[0] if found else None


def as_dict(progress: Progress) -> dict[str, Any]:
    """Progress as JSON holds it."""
    return asdict(progress)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, short."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else (f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s")
