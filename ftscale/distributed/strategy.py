"""Which strategy a run has: its own setting, the launcher's, and what fits a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ftscale.base.errors import UserError, counted, unknown_name
from ftscale.base.launched import is_true, launched_processes
from ftscale.base.resources import resource
from ftscale.config.schema import DistributedConfig
from ftscale.config.strategies import STRATEGIES, Strategy, default_strategy, find_strategy

USE_CPU = "ACCELERATE_USE_CPU"


def resolve_strategy(config: DistributedConfig) -> Strategy:
    """The strategy that the config names, or that the launcher set up.

    Raises UserError: an unknown name; one that the launcher or the number of its processes contradicts.
    """
    processes = launched_processes()
    launched = _launched_strategy()
    if config.strategy and config.strategy not in STRATEGIES:
        raise UserError(unknown_name("distributed.strategy", config.strategy, STRATEGIES))
    strategy = find_strategy(config.strategy) or launched or default_strategy(processes)
    if launched and launched != strategy:
        raise UserError(
            f"distributed.strategy = {strategy.name}, but the launcher was started with {launched.name}; name one of "
            "them only."
        )
    if strategy.one_process and processes > 1:
        raise UserError(
            f"distributed.strategy = single, but {processes} processes were launched; use ddp, or launch one process."
        )
    if is_true(USE_CPU) and strategy.is_zero:
        raise UserError(
            f"distributed.strategy = {strategy.name} asked for DeepSpeed, but {USE_CPU} = {os.environ[USE_CPU]} in the "
            "environment asks Accelerate to leave it out; unset it, or take use_cpu out of accelerate's config."
        )
    if is_true(USE_CPU) and torch.cuda.is_available():
        raise UserError(
            f"{USE_CPU} = {os.environ[USE_CPU]} in the environment asks for the CPU, but a run takes the GPU that is "
            "there; unset it, or hide the GPU: CUDA_VISIBLE_DEVICES= in the environment."
        )
    return strategy


def _launched_strategy() -> Strategy | None:
    """As the launcher's DeepSpeed config names it, a file or `accelerate config`'s answers; None = it has none."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() != "true":
        return None
    if path := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""):
        if (name := Path(path).stem) not in STRATEGIES:
            raise UserError(unknown_name("the launcher's DeepSpeed config file", name, STRATEGIES))
        return STRATEGIES[name]
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if stage is None:  # of a launcher that leaves the strategy to the run's configuration
        return None
    parts = ("OPTIMIZER", "PARAM")
    devices = {os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none").lower() for part in parts}
    offload = next((device for device in ("nvme", "cpu") if device in devices), "none")
    fitting = (zero for zero in STRATEGIES.values() if zero.is_zero and zero.offload == offload)
    if (strategy := next((zero for zero in fitting if str(zero.stage) == stage), None)) is None:
        raise UserError(
            f"ACCELERATE_DEEPSPEED_ZERO_STAGE = {stage} in the environment (deepspeed_config of accelerate's config), "
            f"with offloading to {' and '.join(sorted(devices))}, is none of ftscale's strategies; take it out of "
            f"there and name one: {', '.join(STRATEGIES)}."
        )
    return strategy


def said_of_strategy(strategy: Strategy) -> list[str]:
    """Where the launcher named the strategy: that it did, and that nothing else of its file counts."""
    path = Path(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""))
    if strategy.file is None or _launched_strategy() is None:
        return []
    if not path.is_file():
        said = f"distributed.strategy = {strategy.name}, as the launcher's deepspeed_config says"
        return [f"{said}; nothing else of it counts"]
    if path.read_bytes() == resource("ds_configs", strategy.file).read_bytes():
        return []
    return [f"of {path} its name alone counts: the strategy {strategy.name} is ftscale's own {strategy.file}"]


def check_takeover(checkpoint: str, *, made_by: tuple[str, int], here: tuple[Strategy, int]) -> None:
    """Raise UserError where a checkpoint made with one (strategy, number of processes) does not fit another.

    `made_by`: as its manifest says, with the strategy's name.
    """
    maker, processes = STRATEGIES[made_by[0]], made_by[1]
    if not here[0].shares_checkpoints_with(maker):
        fitting = [strategy.name for strategy in STRATEGIES.values() if strategy.shares_checkpoints_with(maker)]
        raise UserError(
            f"distributed.strategy = {here[0].name} cannot go on from checkpoint {checkpoint}, which was made with "
            f"{maker.name}: its optimizer's state is another; use {' or '.join(fitting)}."
        )
    if maker.on_disk and here[1] != processes:
        raise UserError(
            f"checkpoint {checkpoint} was made by {counted(processes, 'process')} with {maker.name}, which keeps each "
            f"process's state in files of its own; resume with {processes}, not {here[1]}."
        )
