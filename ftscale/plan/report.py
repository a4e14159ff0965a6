"""A plan as text, as JSON, and as settings written into a configuration file."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError, counted
from ftscale.config.overrides import apply_overrides
from ftscale.config.yaml_text import read_yaml, write_yaml
from ftscale.plan.forecast import Choice, Plan
from ftscale.tasks import build_task
from ftscale.train.loop import duration

CHOICES_SHOWN = 12
GIB = 2**30


def show(plan: Plan) -> None:
    """Print it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    for line in summary(plan):
        console.print(line)
    if not plan.choices:
        return
    table = Table("", "strategy", "weights", "checkpointing", "GiB", f"{_unit(plan)}s/s", "USD", box=None)
    shown = list(enumerate(plan.choices[:CHOICES_SHOWN], 1))
    for number, choice in shown:
        table.add_row(str(number), *_row(choice))
    console.print(f"what fits {plan.world_size} x {plan.device.name}, the recommended one first:")
    console.print(table)
    for number, choice in shown:
        console.print(f"{number}: {' '.join(_quoted(choice)) or 'as it is'}", markup=False)


def summary(plan: Plan) -> list[str]:
    """The forecast of the run as it is configured, a line each."""
    memory, time, device = plan.memory, plan.time, plan.device
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in memory.kinds.items() if size)
    verdict = "fits" if plan.fits else "does not fit"
    found = [
        f"{plan.strategy} on {plan.nodes} x {plan.gpus_per_node} {device.name}: {memory.total / GIB:.2f} GiB a device "
        f"of {device.memory / GIB:.4g}, {verdict}",
        f"by kind (GiB): {kinds}",
        _micro_batches(plan),
    ]
    if memory.host or memory.nvme:
        found.append(f"offloaded, a process: host {memory.host / GIB:.2f} GiB, local disk {memory.nvme / GIB:.2f} GiB")
    source = "calibrated" if time.calibrated else "not calibrated"
    found.append(
        f"a step: {plan.step.flops:.3g} operations a micro-batch, {time.step_s:.3g} s at {time.efficiency:.0%} of the "
        f"device's rate ({source}), {time.communication_bytes / GIB:.2f} GiB sent by a device"
    )
    if time.total_s is not None and time.usd is not None and time.gpu_hours is not None:
        found.append(
            f"{counted(plan.num_steps or 0, 'step')}: {duration(time.total_s)}, {time.gpu_hours:.3g} device hours, "
            f"{time.usd:.2f} USD; {time.tokens_per_s:.0f} {_unit(plan)}s/s"
        )
    found.append(f"a checkpoint: {plan.checkpoint_bytes / GIB:.2f} GiB; disk at most {plan.disk_bytes / GIB:.2f} GiB")
    for name, stage in plan.stages.items():
        steps = counted(stage.num_steps, "step") if stage.num_steps else "steps not known"
        lasts = "" if stage.time.total_s is None else f", {duration(stage.time.total_s)}"
        found.append(f"stage {name}: {stage.memory.total / GIB:.2f} GiB a device, {steps}{lasts}")
    return found


def _micro_batches(plan: Plan) -> str:
    longest = counted(plan.micro_batch_tokens, _unit(plan))
    if not build_task(plan.config.task).modality.in_tokens:
        return f"micro-batch: {longest}; largest that fits: {plan.largest_micro_size}"
    most = f"largest that fits: {plan.largest_micro_size} of the longest samples"
    return f"longest micro-batch: {longest}; {most}; {plan.step.layout} rows"


def _unit(plan: Plan) -> str:
    """What a sample is made of: an image counts as one."""
    return build_task(plan.config.task).modality.unit


def as_json_text(plan: Plan) -> str:
    """Everything but the configuration."""
    values = _values(plan)
    if plan.stages:
        values["stages"] = {name: _values(stage) for name, stage in plan.stages.items()}
    return json.dumps(values, indent=2)


def _values(plan: Plan) -> dict[str, Any]:
    """Everything but the configuration, and the stages."""
    left_out = ("config", "step", "stages")
    values: dict[str, Any] = {name: value for name, value in asdict(plan).items() if name not in left_out}
    values |= {
        "fits": plan.fits,
        "memory_bytes": plan.memory.total,
        "flops_per_micro_batch": plan.step.flops,
        "layout": plan.step.layout,
    }
    for written, choice in zip(values["choices"], plan.choices, strict=True):
        written["lines"] = choice.lines()
        written["memory_bytes"] = choice.memory.total
    return values


def apply_choice(plan: Plan, path: Path) -> str:
    """Write the recommended settings into a configuration file; comments are lost. Says what was written.

    Raises UserError where nothing fits, and for a run of several stages.
    """
    if plan.stages:
        raise UserError(
            "--apply does not go with stages, each of which may need other settings; plan them one at a time, without "
            "the others."
        )
    if not plan.choices:
        raise UserError(
            f"--apply: nothing fits {plan.world_size} x {plan.device.name}; take more or larger devices, or shorter "
            "samples (task.max_length)."
        )
    choice = plan.choices[0]
    if not choice.settings:
        return f"{path} is the recommended configuration already"
    data = read_yaml(path.read_text(encoding="utf-8"), source=str(path))
    path.write_text(write_yaml(apply_overrides(data, choice.lines())), encoding="utf-8")
    return f"{path}: {' '.join(choice.lines())}"


def _row(choice: Choice) -> tuple[str, ...]:
    usd = "" if choice.time.usd is None else f"{choice.time.usd:.2f}"
    return (
        choice.strategy,
        choice.weights,
        "yes" if choice.checkpointing else "no",
        f"{choice.memory.total / GIB:.1f}",
        f"{choice.time.tokens_per_s:.0f}",
        usd,
    )


def _quoted(choice: Choice) -> list[str]:
    """Settings as a shell takes them."""
    return [shlex.quote(line) for line in choice.lines()]
