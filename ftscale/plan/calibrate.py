"""Measures a few real steps on this machine, so that forecasts of time know what share of its rate is reached."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from ftscale.config import Config
from ftscale.config.stages import stages_of
from ftscale.models.trust import without_code
from ftscale.plan.devices import Device, load_device
from ftscale.plan.forecast import plan_run
from ftscale.plan.timing import calibrate
from ftscale.run.train import train
from ftscale.train.metrics_file import metric_lines

STEPS = 5
LEFT_OUT = 2
"""First steps, which load kernels."""


def calibrate_here(config: Config, *, device: Device | None = None) -> str:
    """Train a few steps in a folder that is removed again, and keep the share of the device's rate that they reach.

    Of a run of several stages, the first.

    `device`: what this machine has; None = its processor.
    """
    device = device or load_device(None)
    if stages := stages_of(config):
        config = stages[0].config
    config = config.model_copy(update={"model": without_code(config.model)})  # as the plan, which says so
    plan = plan_run(config, gpu=device.key if device.is_gpu else None, compare=False)
    step_s = measure_step(config)
    computing_s = plan.time.step_s - plan.time.update_s
    flops = computing_s * plan.time.efficiency * device.flops(config.train.precision)
    measured_s = max(
        step_s - plan.time.update_s, 0.1 * step_s
    )  # the optimizer's time is a forecast, and may be too long
    share = calibrate(device, flops=flops, step_s=measured_s, precision=config.train.precision)
    return f"a step takes {step_s:.3g} s here: {share:.1%} of the rate of {device.name}"


def measure_step(config: Config) -> float:
    """Seconds of an optimizer step: the median of a few, the first two left out."""
    with tempfile.TemporaryDirectory() as folder:
        short = config.model_copy(
            update={
                "run_folder": str(run_folder := Path(folder) / "run"),
                "train": config.train.model_copy(update={"max_steps": LEFT_OUT + STEPS}),
                "report": type(config.report)(),
                "data": config.data.model_copy(update={"eval": (), "eval_ratio": 0.0, "test": ()}),
                "evaluation": type(config.evaluation)(),
            }
        )
        train(short)
        lines, _ = metric_lines(run_folder / "metrics.jsonl")
    return median([line["step_s"] for line in lines if line["kind"] == "train"][LEFT_OUT:])
