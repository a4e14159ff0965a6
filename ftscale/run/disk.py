"""Whether the disk of the run folder has room for what a run will write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.train.loop import Loop


def check_disk(loop: Loop, config: Config) -> None:
    """Raise UserError where the checkpoints to keep and the saved model will not fit on the disk. Collective."""
    distributed, problems = loop.distributed, list[str]()
    if distributed.is_main:
        problems = disk_problems(config, distributed.unwrapped.model, sharded=distributed.strategy.is_zero)
    if problems := distributed.gather_objects(problems)[0]:
        raise UserError(*problems)


def disk_problems(config: Config, model: Any, *, sharded: bool) -> list[str]:
    """Whether the disk of the run folder is too small. `model`: as it trains; `sharded`: under DeepSpeed."""
    root = Path(config.run_folder) / "checkpoints"
    # the newest ones, the best, and one that is being written; what is there already will be written over
    there = sum(item.stat().st_size for item in root.rglob("*") if item.is_file()) if root.is_dir() else 0
    masters = 4.0 if config.train.precision == "bf16" or sharded else 0.0
    checkpoint, saved = _forecast_bytes(config, model, masters)
    needed = (config.checkpoint.keep + 2) * checkpoint + saved - there
    free = shutil.disk_usage(next(place for place in (root, *root.resolve().parents) if place.is_dir())).free
    if needed <= free:
        return []
    return [
        f"run_folder = {config.run_folder}: {config.checkpoint.keep + 2} checkpoints (checkpoint.keep = "
        f"{config.checkpoint.keep}, the best and one that is being written) and the model need about "
        f"{needed / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free there; free space, lower checkpoint.keep, "
        "or name a folder on another disk."
    ]


def _forecast_bytes(config: Config, model: Any, masters: float) -> tuple[int, int]:
    """Bytes of a checkpoint and of the saved model, as they will be. `masters`: bytes of a weight's float32 copy."""
    from ftscale.models.adapt import count_parameters, weight_bytes
    from ftscale.optim.optimizers import state_bytes_per_weight

    trained, everything = weight_bytes(model)
    states = count_parameters(model)[0] * (state_bytes_per_weight(config.optimizer) + masters)
    return trained + int(states), trained if config.adapter.method != "none" else everything
