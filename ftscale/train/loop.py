"""The loop: step, log, evaluate, save, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftscale.base.errors import UserError, counted
from ftscale.base.logs import log
from ftscale.config.schema import CheckpointConfig, GuardConfig, TrainConfig
from ftscale.data.loader import Step
from ftscale.distributed.runtime import Distributed
from ftscale.methods.base import Context, Method, undisturbed
from ftscale.metrics.main_metrics import main_metrics
from ftscale.modalities.collate import Layout
from ftscale.models.attention import padded_attention
from ftscale.models.freeze import set_training_mode
from ftscale.models.masks import Masks, RowsUnknownError
from ftscale.tasks.batch import Batch, Counts, Terms, total_of
from ftscale.train.checkpoint import Saver
from ftscale.train.display import Now, Show, display
from ftscale.train.evaluations import Evaluations
from ftscale.train.guard import NotFiniteError, Statistics, first_not_finite, named_rows, verdict
from ftscale.train.manifest import Checkpoint, complete_checkpoints
from ftscale.train.metrics_file import MetricsFile, peak_memory_bytes, rows_hash
from ftscale.train.state import Progress, RunState
from ftscale.train.stop_request import Interrupted, StopRequest
from ftscale.train.trackers import Trackers

UNTOLD = ("rows_hash", "tokens", "targets", "step_s")
"""Figures of a step that trackers do not get."""


class TaskModule(nn.Module):
    """Model and task as the one module that DDP and DeepSpeed wrap: its forward is the loss, or the outputs."""

    def __init__(self, model: nn.Module, task: Method, *, masks: Masks | None = None) -> None:
        """`masks`: what the model's dropouts draw from; None = they draw as torch does."""
        super().__init__()
        self.model = model
        self.task = task
        self.masks = masks
        self.extra = task.attach(model)

    @property
    def config(self) -> Any:
        """The model's own config: DeepSpeed sizes its buckets by it."""
        return self.model.config

    def forward(
        self,
        *,
        batch: Batch | None = None,
        inputs: dict[str, Tensor] | None = None,
        run: Callable[[nn.Module], Any] | None = None,
    ) -> Any:
        """The terms of the loss; in eval mode, the task's outputs; for plain `inputs` the model's, by name.

        `run`: what this function of the model gives, on the batch where one is named. All by keywords, since DeepSpeed
        looks for tensors in other arguments and knows no dataclass.
        """
        if batch is not None and self.training and self.masks is not None:
            rows, repeats = batch.sequence_rows()
            self.masks.enter(rows, repeats=repeats, bounds=batch.inputs.get("cu_seq_lens_q"))
        if run is not None:
            return run(self.model)
        if batch is None:
            assert inputs is not None
            with padded_attention(self.model):
                outputs = self.model(**inputs)
            tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
            return {name: value for name, value in tensors.items() if value.is_floating_point()}
        if not self.training:
            return self.task.outputs(self.model, batch)
        try:
            return self.task.loss(self.model, batch)
        except RowsUnknownError as error:
            raise UserError(
                f"train.dropout = by_row cannot be used: {error}; set train.dropout: by_process, in a new run_folder."
            ) from error


class StepSource(Protocol):
    """Where optimizer steps come from."""

    def after(self, step: int) -> Generator[Step, None, None]:
        """The steps behind the first `step` of the run."""

    def where(self, row: int) -> str:
        """Where a row of this rank's micro-batches was read: file and line."""


@dataclass
class Loop:
    """Everything that training touches, handed in by the composition root."""

    task: Method
    distributed: Distributed
    state: RunState
    steps: StepSource
    num_steps: int
    layout: Layout
    """Of the batches."""
    train: TrainConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    evaluations: Evaluations
    saver: Saver
    after_save: Callable[[], None]
    """Called when a checkpoint that was due is saved."""
    metrics: MetricsFile
    stop_request: StopRequest
    statistics: Statistics
    """Of the module's batch norms."""
    masks: Masks | None = None
    """What dropouts draw from; None = each process draws in turn, as torch does."""
    trackers: Trackers = field(default_factory=Trackers)


@dataclass(frozen=True)
class Agreed:
    """What the ranks tell each other in a step, the same on all of them."""

    losses: dict[str, float]
    """Each term's sum over the targets of the global batch."""
    counts: Counts
    """What the micro-batches of the global batch count."""
    rows_hash: int
    stop: bool
    """A rank is asked to stop."""
    save_failed: bool
    """A rank could not write its part of the checkpoint that is saved in the background."""


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step came to, the same on all ranks."""

    loss: float
    """Mean over the targets of the global batch."""
    grad_norm: float
    """Before clipping."""
    lr: float
    tokens: int
    targets: int
    """Of the first term."""
    terms: dict[str, float]
    """The mean of each, before its coefficient."""
    agreed: Agreed

    def figures(self) -> dict[str, float]:
        """What metrics.jsonl says of it."""
        return {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "tokens": self.tokens,
            "targets": self.targets,
            "rows_hash": self.agreed.rows_hash,
            **({f"loss/{name}": mean for name, mean in self.terms.items()} if len(self.terms) > 1 else {}),
        }


def run_loop(loop: Loop) -> str:
    """Train from where the run's state stands; returns completed, stopped_early or preempted."""
    progress = loop.state.progress
    started = time.perf_counter() - progress.elapsed_s
    set_training_mode(loop.distributed.module)
    stop = loop.distributed.any(bool(loop.stop_request))
    best, enabled = partial(_best_so_far, loop), loop.distributed.is_main
    shown = display(total=loop.num_steps, done=progress.step, best=best, enabled=enabled)
    with closing(loop.steps.after(progress.step)) as steps, shown as show:  # its worker processes end with it
        first, first_tick = progress.step, 0.0
        while (status := _between_steps(loop, stop=stop)) is None:
            tick = time.perf_counter()
            first_tick = first_tick or tick  # an evaluation before the first step says nothing of the pace
            result = _train_step(loop, next(steps))
            progress.elapsed_s = time.perf_counter() - started
            stop = result.agreed.stop
            now = time.perf_counter()
            a_step_s = (now - first_tick) / max(progress.step - first, 1)
            _report(loop, result, step_s=now - tick, a_step_s=a_step_s, show=show)
            if result.agreed.save_failed:
                loop.saver.wait()
    return status


def _between_steps(loop: Loop, *, stop: bool) -> str | None:
    """Evaluate, save and stop as this step asks; returns the status when training ends here.

    What was done before a kill is not done again: a resumed run comes here first.
    """
    progress, evaluations = loop.state.progress, loop.evaluations
    step, last = progress.step, progress.step >= loop.num_steps
    if stop and not last:
        return _preempted(loop)
    improved = False
    if evaluations.due(progress):
        try:
            improved = _evaluate(loop)
        except Interrupted:
            return _preempted(loop)
        finally:
            set_training_mode(loop.distributed.module)
    every = loop.checkpoint.every
    save = step > 0 and (step % every == 0 if every else step in evaluations.steps)
    if (save or improved or last) and loop.saver.saved != step:
        _save(loop)
        loop.after_save()
    if not last and evaluations.out_of_patience(progress):
        patience = counted(evaluations.config.patience, "evaluation")
        log.info("no better %s in %s: stopping", evaluations.metric, patience)
        loop.metrics.write("event", step, event="stopped_early")
        return "stopped_early"
    return "completed" if last else None


def _preempted(loop: Loop) -> str:
    step = loop.state.progress.step
    if loop.saver.saved != step:
        _save(loop, at_once=True)
    loop.saver.wait()
    reason = loop.stop_request.reason or "another rank"
    loop.metrics.write("event", step, event="preempted", reason=reason)
    log.info("asked to stop (%s): checkpoint of step %d written", reason, step)
    return "preempted"


def _save(loop: Loop, *, at_once: bool = False) -> None:
    progress = loop.state.progress
    best, metric = progress.best_step, progress.last_metrics.get(loop.evaluations.metric)
    loop.metrics.sync()  # no line before a checkpoint is lost where the machine is, or its disk
    loop.saver.save(progress.step, loop.state.state_dict(), best=best, metric=metric, at_once=at_once)
    loop.metrics.write("event", progress.step, event="saved", blocked_s=round(loop.saver.blocked_s, 4))


def _train_step(loop: Loop, data: Step) -> StepResult:
    """One optimizer step over this rank's micro-batches."""
    distributed, progress, coefficients = loop.distributed, loop.state.progress, loop.task.terms
    rule, number = loop.state.rule, loop.state.progress.step + 1
    if loop.masks is not None:
        loop.masks.step = progress.step
    data = _before_step(loop, data)
    counts: Mapping[str, float] = data.counts or _count_beforehand(loop, data)
    # times world size: DDP and DeepSpeed average gradients over ranks, the global count already covers all of them
    scales = {name: factor * (distributed.world_size / (counts[name] or 1)) for name, factor in coefficients.items()}
    totals = {name: torch.zeros((), dtype=torch.float32, device=distributed.device) for name in coefficients}
    counted = dict.fromkeys(coefficients, 0.0)
    loop.statistics.keep()
    bad: str | None = None
    for index, (batch, real) in enumerate(data.micro_batches):
        last = index == len(data.micro_batches) - 1
        if real:
            for name, count in loop.task.count(batch).items():
                counted[name] += count
        with distributed.micro_batch(last=last):
            terms: Terms = distributed.module(batch=batch.to(distributed.device))
            if real:
                for name, term in terms.items():
                    totals[name] += term.detach().float()
            if last:  # agreed before the gradients are whole, so that a bad batch can still be kept out of them
                agreed = _agree(loop, data, totals=totals, counted=counted)
                means = {name: agreed.losses[name] / (counts[name] or 1) for name in coefficients}
                mean = sum(factor * means[name] for name, factor in coefficients.items())
                bad = verdict(loop.guard, progress.losses, mean)
            # in the last backward DDP and DeepSpeed average the gradients: a rank that left a bad batch out of it would
            # keep the others waiting. So all go through it, and make their gradients NaN, which every sum hands on: the
            # norm is NaN then, and a step whose norm is not finite is dropped on all ranks, whatever the strategy
            factors = {name: scale * real * (math.nan if bad else 1.0) for name, scale in scales.items()}
            distributed.backward(total_of(terms, factors), last=last)
    assert agreed.counts == counts, f"step {progress.step}: {agreed.counts} targets in batches, {counts} announced"
    targets = int(next(iter(counts.values())))
    lr = loop.state.schedule.get_last_lr()[0]
    grad_norm = distributed.step(
        after_backward=partial(rule.after_backward, step=number),
        after_update=partial(rule.after_update, step=number),
    )
    # fp16 skips a step whose gradients overflow and lowers its scale
    if not bad and not math.isfinite(grad_norm) and distributed.precision != "fp16":
        bad = "the gradient is not finite"
    loop.state.advance_schedule(mean)
    progress.tokens += data.tokens
    progress.targets += targets
    progress.step += 1
    if bad:
        _bad_batch(loop, data, bad)
    else:
        progress.bad_in_row = 0
        progress.losses = [*progress.losses, mean][-loop.guard.window :] if loop.guard.spike_z else []
    return StepResult(mean, grad_norm, lr, data.tokens, targets, means, agreed)


def _before_step(loop: Loop, data: Step) -> Step:
    """The step as the method makes it; counts that the method takes for itself are not those of prepared rows."""
    number, module = loop.state.progress.step + 1, loop.distributed.module
    loop.state.rule.before_step(step=number)
    if loop.task.says("count"):
        data = replace(data, counts=None)
    if loop.task.acts_before_step:
        with undisturbed(module):
            data = loop.task.before_step(data, Context(module, loop.distributed, number))
    return data


def _count_beforehand(loop: Loop, data: Step) -> Counts:
    """Targets of the global batch where they are known in the micro-batches only. Collective."""
    own = dict.fromkeys(loop.task.terms, 0.0)
    for batch, real in data.micro_batches:
        for name, count in loop.task.count(batch).items() if real else ():
            own[name] += count
    return loop.distributed.sum(own)


def _agree(loop: Loop, data: Step, *, totals: Terms, counted: Counts) -> Agreed:
    """The step's one all-reduce besides the gradients'."""
    sums = loop.distributed.sum(
        {
            **{f"loss/{name}": float(total) for name, total in totals.items()},
            **{f"count/{name}": float(count) for name, count in counted.items()},
            "rows_hash": float(sum(rows_hash(batch.rows) for batch, real in data.micro_batches if real)),
            "stop": float(bool(loop.stop_request)),
            "save_failed": float(loop.saver.failed),
        }
    )
    return Agreed(
        losses={name: sums[f"loss/{name}"] for name in totals},
        counts={name: sums[f"count/{name}"] for name in counted},
        rows_hash=int(sums["rows_hash"]),
        stop=sums["stop"] > 0,
        save_failed=sums["save_failed"] > 0,
    )


def _bad_batch(loop: Loop, data: Step, what: str) -> None:
    """Name the culprits, then stop, skip or rewind; the weights have not seen the batch. Collective."""
    progress = loop.state.progress
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
        policy = _rewind(loop)
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
        batch = batch.to(loop.distributed.device)
        module = first_not_finite(loop.distributed.unwrapped, partial(loop.distributed.module, batch=batch))
        own = [loop.steps.where(row) for row in batch.rows.tolist()] if real else []
        rows += own
        if guilty is None and own and module is not None:
            guilty = {"rank": loop.distributed.rank, "module": module, "rows": named_rows(own)}
    everything = {"rank": loop.distributed.rank, "module": None, "rows": named_rows(rows)}
    found = loop.distributed.gather_objects((guilty, everything))
    return [item for item, _ in found if item] or [item for _, item in found]


def _rewind(loop: Loop) -> str:
    """Back to the weights and the optimizer of the newest checkpoint; the data goes on behind the bad batch."""
    step = loop.state.progress.step
    loop.saver.wait()
    found = None
    if loop.distributed.is_main:
        found = next(reversed(complete_checkpoints(loop.saver.root)), None)
    checkpoint = loop.distributed.gather_objects(found)[0]
    if checkpoint is None:
        log.warning("guard.policy = rewind, but there is no checkpoint yet to go back to")
        return "stop"
    loop.distributed.load_state(checkpoint.folder)
    loop.metrics.write("event", step, event="rewound", to=checkpoint.step)
    log.warning("back to the weights of step %d, on with the batch after step %d", checkpoint.step, step)
    return "rewind"


def _report(loop: Loop, result: StepResult, *, step_s: float, a_step_s: float, show: Show) -> None:
    """Write and tell a step. `a_step_s`: what steps of this start took, with the evaluations between them."""
    progress, figures = loop.state.progress, result.figures()
    rate, memory = result.tokens / max(step_s, 1e-9), peak_memory_bytes()
    measured = {"step_s": round(step_s, 6), "tokens_per_s": round(rate, 1), "memory_bytes": memory}
    loop.metrics.write("train", progress.step, **figures, **measured)
    speed, used = f"{rate:.0f} {loop.task.modality.unit}s/s", f"{memory / 2**30:.1f} GiB"
    show(Now(progress.step, result.loss, speed, used))
    if progress.step % loop.train.log_every == 0 or progress.step in (1, loop.num_steps):
        told = {name: value for name, value in (figures | measured).items() if name not in UNTOLD}
        loop.trackers.log({f"train/{name}": value for name, value in told.items()}, step=progress.step)
        log.info(
            "step %d/%d  loss %.4f  grad norm %.3g  lr %.3g  %s  %s  %s left",
            progress.step,
            loop.num_steps,
            result.loss,
            result.grad_norm,
            result.lr,
            speed,
            used,
            duration((loop.num_steps - progress.step) * a_step_s),
        )


def _best_so_far(loop: Loop) -> str:
    best = loop.state.progress
    return (
        "" if best.best_metric is None else f"{loop.evaluations.metric} {best.best_metric:.4f} (step {best.best_step})"
    )


def _evaluate(loop: Loop) -> bool:
    """Score the evaluation rows; returns whether this is the best so far."""
    assert loop.evaluations.score is not None
    progress = loop.state.progress
    metrics = loop.evaluations.score(progress.step)
    improved = loop.evaluations.judge(metrics, progress)
    loop.metrics.write("eval", progress.step, **metrics)
    loop.trackers.log({f"eval/{name}": value for name, value in metrics.items()}, step=progress.step)
    shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in main_metrics(metrics))
    log.info("evaluation at step %d: %s%s", progress.step, shown, "  (best)" if improved else "")
    return improved


def best_checkpoint(loop: Loop, progress: Progress) -> Checkpoint | None:
    """The checkpoint of the best evaluation, where it is not the last step."""
    keeps_best = loop.evaluations.score is not None and loop.evaluations.config.keep_best
    if not keeps_best or progress.best_step in (None, progress.step):
        return None
    found = [item for item in complete_checkpoints(loop.saver.root) if item.step == progress.best_step]
    return found[0] if found else None


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, short."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else (f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s")
