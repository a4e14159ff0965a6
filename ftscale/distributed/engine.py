"""DeepSpeed: its settings, and its engine's way of writing and reading."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftscale.base.errors import UserError
from ftscale.base.resources import resource
from ftscale.base.tensor_files import load_tensors
from ftscale.config.schema import DistributedConfig
from ftscale.config.strategies import Strategy

SHARDS = "deepspeed"
"""The folder in a checkpoint that DeepSpeed writes."""

NOMINAL_ACCUMULATION = 2
# DeepSpeed divides nothing by it (scale_wrt_gas=False) and steps where it is told, but its optimizer offload keeps
# accumulated gradients only when the config says that there is accumulation (stage_1_and_2.py, set_norm_for_param_grad)


def deepspeed_plugin(strategy: Strategy, config: DistributedConfig, *, precision: str, max_grad_norm: float) -> Any:
    """What Accelerate makes DeepSpeed from; None = a strategy without it. Sets the environment that it needs.

    Raises UserError where the strategy lacks a folder or a library.
    """
    if strategy.file is None:
        return None
    from accelerate import DeepSpeedPlugin
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)  # it warns of settings that are meant, e.g. optimizers it did not make itself
    settings = json.loads(resource("ds_configs", strategy.file).read_text())
    # facts: "auto" would become 1.0 whatever was asked, and clip_grad_norm_ only reports
    settings["gradient_clipping"] = float(max_grad_norm)
    settings["gradient_accumulation_steps"] = NOMINAL_ACCUMULATION
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["train_batch_size"] = NOMINAL_ACCUMULATION * int(os.environ.get("WORLD_SIZE", "1"))
    settings["bf16"]["enabled"] = precision == "bf16"
    settings["fp16"]["enabled"] = precision == "fp16"
    if strategy.on_disk:
        if not config.offload_dir:
            raise UserError(
                f"distributed.strategy = {strategy.name} needs distributed.offload_dir: a folder on a fast local disk."
            )
        for part in ("offload_optimizer", "offload_param"):
            settings["zero_optimization"][part]["nvme_path"] = str(swap_folder(config))
        _check_async_io(strategy)
    # the launcher's own variables must not add to what is written here; torchrun and srun set none
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(_free_port())}.items():
        os.environ.setdefault(name, value)
    return DeepSpeedPlugin(
        hf_ds_config=settings, gradient_accumulation_steps=NOMINAL_ACCUMULATION, zero3_init_flag=False
    )


def save_engine(
    engine: Any, folder: Path, write: Callable[[Any, Path], None], *, kept: Container[str], shards_weights: bool
) -> None:
    """Have the engine's state written into `folder` by `write(value, path)`; of the weights, those `kept`. Collective.

    `shards_weights`: under ZeRO-3.
    """
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class Writer(TorchCheckpointEngine):  # DeepSpeed's own place for another way of writing, and of reading
        def save(self, state_dict: Any, path: str) -> None:
            if state_dict.get("module"):  # DeepSpeed leaves out frozen weights, not the scales of quantised ones
                weights = state_dict["module"]
                state_dict["module"] = {name: weights[name] for name in weights if name in kept}
            write(state_dict, Path(path))

    usual, engine.checkpoint_engine = engine.checkpoint_engine, Writer()
    try:
        # frozen base weights are on disk already, where the model came from
        engine.save_checkpoint(str(folder), tag=SHARDS, exclude_frozen_parameters=True, save_latest=False)
    except OSError:
        # rank 0 copying DeepSpeed's recovery scripts; what is left of the save, in which the others wait for it:
        if shards_weights:
            engine.optimizer.checkpoint_event_epilogue()
        torch.distributed.barrier()
        raise
    finally:
        engine.checkpoint_engine = usual


def load_engine(engine: Any, folder: Path) -> None:
    """Read what `save_engine` had written, with as many processes. Collective."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    class Reader(TorchCheckpointEngine):
        def load(self, path: str, map_location: Any = None) -> Any:
            del map_location  # to the CPU, however DeepSpeed says it
            return load_tensors(Path(path), classes=classes_of_shards())

    usual, engine.checkpoint_engine = engine.checkpoint_engine, Reader()
    try:
        engine.load_checkpoint(
            str(folder),
            tag=SHARDS,
            load_module_strict=False,
            load_optimizer_states=True,  # ZeRO-3 keeps the weights themselves among them
            load_lr_scheduler_states=False,
        )
    finally:
        engine.checkpoint_engine = usual


def frozen_engine(module: nn.Module, zero: dict[str, Any], *, offloads_weights: bool) -> Any:
    """An engine without an optimizer, which gathers each layer's weights for its forward. Collective.

    `zero`: settings of the ZeRO-3 that the trained model is under.
    """
    import deepspeed

    kept = {name: value for name, value in zero.items() if name not in ("offload_optimizer", "offload_param")}
    if offloads_weights:
        kept["offload_param"] = {"device": "cpu", "pin_memory": True}
    dtype = next(module.parameters()).dtype
    lay_rows_first(module)
    engine, *_ = deepspeed.initialize(
        model=module,
        config={
            "train_micro_batch_size_per_gpu": 1,  # informs DeepSpeed's own logs only
            "bf16": {"enabled": dtype == torch.bfloat16},
            "fp16": {"enabled": dtype == torch.float16},
            "steps_per_print": 2147483647,
            "zero_optimization": kept,
        },
    )
    engine.eval()  # which returns nothing
    return engine


def lay_rows_first(module: nn.Module) -> None:
    """Convolutions in channels-last memory back into plain order: DeepSpeed views weights as bytes and flattens them.

    (N, C, 1, 1) counts as contiguous in both orders, so that `contiguous` would leave its strides.
    """
    for weight in module.parameters():
        if weight.ndim >= 4:
            weight.data = weight.data.reshape(-1).view(weight.shape)


def classes_of_shards() -> list[Any]:
    """What DeepSpeed's files hold besides tensors and plain values; each of these only keeps numbers."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def swap_folder(config: DistributedConfig) -> Path:
    """This rank's own."""
    return Path(config.offload_dir or "") / f"rank-{int(os.environ.get('RANK', '0')):05d}"


def _check_async_io(strategy: Strategy) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            f"distributed.strategy = {strategy.name} reads and writes by libaio, which DeepSpeed does not find here; "
            "install it (Debian and Ubuntu: apt-get install libaio-dev), or use zero3_offload."
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
