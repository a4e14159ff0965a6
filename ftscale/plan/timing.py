"""Time and cost: operations over a rate, bytes between devices over a link, and what follows for the whole run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftscale.base.sealed import write_text
from ftscale.config import Config
from ftscale.config.strategies import Strategy
from ftscale.plan.devices import CALIBRATION, Device
from ftscale.plan.dry_run import Sizes
from ftscale.plan.memory import state_bytes

EFFICIENCY = 0.4
"""Share of a device's rate that training reaches without calibration: 0.3 to 0.5 is what published runs report (PaLM,
arXiv:2204.02311, table 3)."""
LINK_EFFICIENCY = 0.7
"""Share of a link's rate that collectives reach."""
OPTIMIZER_IN_HOST, WEIGHTS_IN_HOST = 1.5, 3.0
"""How much longer a step takes whose optimizer (and weights) cross the host's bus: estimates, for hosts and tokens of a
step differ. ZeRO-Offload's abstract (arXiv:2101.06840) has 40 of a V100's 125 TFLOPS for 10 B weights."""
EIGHT_BIT_ON_CPU_S = 2e-8
"""Of each weight that trains: bitsandbytes' arithmetic on one core of a server (benchmarks/plan_accuracy.py)."""
OVERLAP = 0.5
"""Share of the communication that runs beside the computation."""


@dataclass(frozen=True)
class Time:
    """Of the run on the devices asked for."""

    step_s: float
    """An optimizer step."""
    update_s: float
    """The part of it that the optimizer takes after the last backward pass."""
    communication_bytes: float
    """Sent by a device in an optimizer step."""
    total_s: float | None
    """To the end, evaluations and checkpoints aside; None where the number of steps is not known."""
    gpu_hours: float | None
    usd: float | None
    tokens_per_s: float
    """Of all devices together."""
    efficiency: float
    calibrated: bool


def traffic_bytes(
    sizes: Sizes, *, strategy: Strategy, world_size: int, micro_batches: int, weight_bytes: float
) -> float:
    """Bytes that a device sends in an optimizer step, by ring collectives.

    Data parallel and ZeRO-1, 2: gradients reduced and weights (or gradients) gathered, 2 N (P - 1) / P; ZeRO-3: the
    weights gathered for forward and backward of each micro-batch besides (ZeRO, arXiv:1910.02054, section 7).
    """
    if world_size == 1:
        return 0.0
    share = (world_size - 1) / world_size
    trained = sizes.trained * weight_bytes
    if strategy.shards_weights:
        return share * (trained + 2 * micro_batches * sizes.bytes)
    return share * 2 * trained


def update_seconds(config: Config, sizes: Sizes, *, strategy: Strategy, world_size: int, device: Device) -> float:
    """Of the optimizer alone: state and fp32 masters are read and written, gradients read, weights written."""
    share = 1 / world_size if strategy.is_zero else 1.0
    held = state_bytes(config.optimizer.name, sizes.trained, momentum=config.optimizer.momentum)
    held += 4 * sizes.trained if config.train.precision == "bf16" else 0.0
    moved_s = (2 * held + 2 * sizes.trained_bytes) / (device.bandwidth_gb_s * 1e9)
    on_cpu = not device.is_gpu and config.optimizer.name.endswith("_8bit")
    return share * (moved_s + sizes.trained * EIGHT_BIT_ON_CPU_S * on_cpu)


def forecast_time(
    *,
    flops: float,
    update_s: float,
    traffic: float,
    tokens: float,
    num_steps: int | None,
    strategy: Strategy,
    device: Device,
    precision: str,
    world_size: int,
    nodes: int,
    interconnect_gb_s: float,
) -> Time:
    """`flops`: of one device in an optimizer step. `tokens`: of the global batch.

    `interconnect_gb_s`: between machines, each device's share; within one the device's own link counts.
    """
    factor, calibrated = efficiency(device)
    compute_s = flops / (device.flops(precision) * factor) * _slowdown(strategy)
    link = (device.link_gb_s if nodes == 1 else min(interconnect_gb_s, device.link_gb_s)) * 1e9
    communication_s = traffic / (link * LINK_EFFICIENCY)
    step_s = compute_s + max(communication_s * (1 - OVERLAP), communication_s - compute_s * OVERLAP) + update_s
    total = None if num_steps is None else step_s * num_steps
    hours = None if total is None else total * world_size / 3600
    usd = None if hours is None else hours * device.usd_per_hour
    return Time(step_s, update_s, traffic, total, hours, usd, tokens / step_s if step_s else 0.0, factor, calibrated)


def _slowdown(strategy: Strategy) -> float:
    if not strategy.offloads_optimizer or strategy.on_disk:  # of a disk there is no estimate
        return 1.0
    return WEIGHTS_IN_HOST if strategy.offloads_weights else OPTIMIZER_IN_HOST


def efficiency(device: Device) -> tuple[float, bool]:
    """The share of a device's rate, and whether it was measured here."""
    saved = _calibrations()
    return (saved[device.key], True) if device.key in saved else (EFFICIENCY, False)


def calibrate(device: Device, *, flops: float, step_s: float, precision: str) -> float:
    """Remember what share of the device's rate a measured step reached; returns it."""
    share = flops / step_s / device.flops(precision)
    path = calibration_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**_calibrations(), device.key: share}, indent=2) + "\n")
    return share


def calibration_file() -> Path:
    """Where measured rates are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "ftscale" / CALIBRATION.name


def _calibrations() -> dict[str, Any]:
    path = calibration_file()
    return json.loads(path.read_text()) if path.is_file() else {}
