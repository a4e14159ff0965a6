"""Processes, strategies and devices: the only file that knows DeepSpeed and Accelerate's sharp edges."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ftscale.config.schema import DistributedConfig
from ftscale.config.strategies import STRATEGIES, Strategy, default_strategy, find_strategy
from ftscale.errors import UserError, counted, unknown_name
from ftscale.files import remove
from ftscale.launched import adopt_launch, check_launch, is_true, launched_processes
from ftscale.logs import log
from ftscale.processes import found_environment, restore_environment
from ftscale.resources import resource
from ftscale.shards import check_shards, cut_for, reshard
from ftscale.swapped import load_swapped, save_swapped
from ftscale.tensor_files import load_tensors

COMPILER_S = 600.0  # a file of DeepSpeed's takes two minutes at most

USE_CPU = "ACCELERATE_USE_CPU"

SHARDS = "deepspeed"
"""The folder in a checkpoint that DeepSpeed writes."""

NOMINAL_ACCUMULATION = 2
# DeepSpeed divides nothing by it (scale_wrt_gas=False) and steps where it is told, but its optimizer offload keeps
# accumulated gradients only when the config says that there is accumulation (stage_1_and_2.py, set_norm_for_param_grad)


class Distributed:
    """One process's view of all of them: what to do together, under whichever strategy.

    Attributes: `rank`, `world_size`, `is_main`, `device`, `strategy`.
    Raises UserError: unknown strategy; `single` with several processes; a strategy that the launcher contradicts.
    """

    def __init__(self, config: DistributedConfig, *, precision: str, max_grad_norm: float) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

        self._environment = found_environment()
        check_launch()
        self.strategy = resolve_strategy(config)
        said = _said_of_strategy(self.strategy)
        place = adopt_launch(precision=precision)
        for line in (*said, *place.said) if place.rank == 0 else ():
            log.warning("%s", line)
        self._swap_folder = _swap_folder(config)
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        cuda = torch.cuda.is_available()
        os.environ["DS_ACCELERATOR"] = "cuda" if cuda else "cpu"
        if not cuda and precision == "fp16":
            raise UserError("train.precision = fp16 needs a GPU, and there is none here; use bf16 or fp32.")
        plugin = _deepspeed_plugin(self.strategy, config, precision=precision, max_grad_norm=max_grad_norm)
        if plugin is not None:
            _wait_for_compilers(_operators(self.strategy, cuda=cuda))
        # DDP must know of weights that a forward leaves out; `prepare` tells
        self._ddp = DistributedDataParallelKwargs()
        grouped = plugin is not None or place.world_size > 1
        # facts: without a backend named, Accelerate on a CPU runs one process whatever the launcher says
        backend = ("nccl" if cuda else "gloo") if grouped else None
        self._timeout = timedelta(seconds=config.timeout_s)
        group = InitProcessGroupKwargs(backend=backend, timeout=self._timeout)
        mixed = precision if plugin is not None and precision != "fp32" else ("fp16" if precision == "fp16" else "no")
        self._owns_group = not torch.distributed.is_initialized()
        self.accelerator = Accelerator(
            # facts: without cpu=True Accelerate leaves DDP out on a CPU, with it it leaves DeepSpeed out
            cpu=not cuda and plugin is None,
            mixed_precision=mixed,
            deepspeed_plugin=plugin,
            gradient_accumulation_steps=NOMINAL_ACCUMULATION if plugin is not None else 1,
            kwargs_handlers=[self._ddp, group],
            step_scheduler_with_optimizer=False,
        )
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self.device: torch.device = self.accelerator.device
        expected = place.world_size
        assert self.world_size == expected, f"{expected} processes were launched, but the group has {self.world_size}"
        if self.strategy.is_zero and (found := self.accelerator.distributed_type) != "DEEPSPEED":
            raise RuntimeError(self._without_deepspeed(f"Accelerate would run {found.value}"))
        self.unwrapped: nn.Module
        """The module as it was before `prepare`."""
        self.module: nn.Module
        self.optimizer: Any

    # ------------------------------------------------------------ the model

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, unused_weights: bool) -> None:
        """Put the module on its device and under the strategy.

        `unused_weights`: some trained weights get no gradient in a forward (DDP must be told).
        """
        self._ddp.find_unused_parameters = unused_weights
        if self.strategy.is_zero:
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            config["train_micro_batch_size_per_gpu"] = 1  # informs DeepSpeed's own logs only: micro-batches vary
            if self.strategy.on_disk:  # each buffer holds a rank's share of the longest weight
                longest = max(weight.numel() for weight in module.parameters())
                config["zero_optimization"]["offload_param"]["buffer_size"] = math.ceil(longest / self.world_size)
            _lay_rows_first(module)
        self.unwrapped = module
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        if self.strategy.is_zero:
            from deepspeed import DeepSpeedEngine

            if not isinstance(self.module, DeepSpeedEngine):
                raise RuntimeError(self._without_deepspeed(f"the model became a {type(self.module).__name__}"))
            # DeepSpeed's own group waits half an hour for a rank that hangs, whatever the world's group was given
            self.module.data_parallel_group.set_timeout(self._timeout)  # type: ignore[union-attr]
            log.info(
                "strategy %s: DeepSpeed ZeRO stage %d, %s",
                self.strategy.name,
                self.strategy.stage,
                counted(self.world_size, "process"),
            )
        else:
            wrapped = isinstance(self.module, nn.parallel.DistributedDataParallel)
            assert wrapped or self.world_size == 1, f"{self.world_size} processes, but {type(self.module).__name__}"
            log.info("strategy %s, %s", self.strategy.name, counted(self.world_size, "process"))

    def _without_deepspeed(self, found: str) -> str:
        return (
            f"distributed.strategy = {self.strategy.name} asked for DeepSpeed, but {found}; the run stops rather than "
            "train without it."
        )

    @contextlib.contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Models made inside have all their weights on each rank; under ZeRO-3 they would else be made in shards."""
        if not self.strategy.shards_weights:
            yield
            return
        from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        try:
            yield
        finally:
            set_hf_deepspeed_config(self.accelerator.state.deepspeed_plugin.dschf)

    # ------------------------------------------------------------ a step

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a micro-batch's gradients; `last`: the ranks then agree on their average.

        The loss counts in full: nothing is divided by the number of micro-batches.
        """
        if self.strategy.is_zero:
            self.module.set_gradient_accumulation_boundary(last)  # type: ignore[operator]
            # facts: without scale_wrt_gas=False DeepSpeed divides by its own accumulation
            self.module.backward(loss, scale_wrt_gas=False)  # type: ignore[operator]
        else:
            self.accelerator.backward(loss)

    @contextlib.contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients cross the network only after the last."""
        if last or self.strategy.is_zero:
            yield
        else:
            with self.accelerator.no_sync(self.module):
                yield

    def step(
        self, *, after_backward: Callable[[], None] = lambda: None, after_update: Callable[[], None] = lambda: None
    ) -> float:
        """Clip the gradients, update the weights, clear the gradients; returns the norm before clipping.

        Gradients that are not finite are dropped and change nothing; the norm is then not finite. `after_backward` is
        called before they are clipped, `after_update` when the weights are new and the gradients not yet cleared (both
        not under DeepSpeed, which takes the gradients into its own hands).
        """
        if self.strategy.is_zero:
            self.module.step()  # type: ignore[operator]
            norm = float(self.module.get_global_grad_norm())  # type: ignore[operator]
            return norm if norm >= 0 else math.nan  # -1 is how DeepSpeed says that a norm is not finite
        self.accelerator.unscale_gradients()
        after_backward()
        norm = self._clip([weight for weight in self.module.parameters() if weight.grad is not None])
        if math.isfinite(norm) or self.precision == "fp16":  # loss scaling has its own way with overflows
            self.optimizer.step()
            after_update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _clip(self, weights: list[nn.Parameter]) -> float:
        """The global norm of the gradients: each weight's in its own type, their sum in float32.

        bfloat16 rounds a weight's norm to three digits. Over the 100 weights of MiniLM the sum is off by 3e-5 and takes
        2 ms on a CPU; with converted gradients, 20 ms.
        """
        norms = [torch.linalg.vector_norm(weight.grad).float() for weight in weights]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
        if self.max_grad_norm:
            nn.utils.clip_grads_with_norm_(weights, self.max_grad_norm, norm)
        return float(norm)

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums over all ranks, in one small all-reduce."""
        packed = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            torch.distributed.all_reduce(packed)
        return dict(zip(values, packed.tolist(), strict=True))

    def share_buffers(self) -> None:
        """Rank 0's statistics, as of batch norms, for all; DDP does so by itself. Collective."""
        if self.strategy.is_zero and self.world_size > 1:
            for buffer in self.unwrapped.buffers():
                if buffer.is_floating_point():  # what a model counts or masks with is the same everywhere
                    torch.distributed.broadcast(buffer, src=0)

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank. Collective."""
        return self.sum({"flag": float(flag)})["flag"] > 0

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """Every rank's rows (own, ...), on every rank; all but their number are alike. Collective."""
        if self.world_size == 1:
            return [rows]
        numbers = self.gather_objects(len(rows))
        filled = rows.new_zeros(max(numbers), *rows.shape[1:])
        filled[: len(rows)] = rows
        parts = [torch.empty_like(filled) for _ in numbers]
        torch.distributed.all_gather(parts, filled)
        return [part[:number] for part, number in zip(parts, numbers, strict=True)]

    def barrier(self) -> None:
        """Wait until every rank has come here. Collective."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Finish trackers and free the engine, so that another run can follow in the same process.

        The process group of several processes stays until they end: they may not come to its end together.
        """
        self.accelerator.free_memory()
        if self.strategy.on_disk:
            shutil.rmtree(self._swap_folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the other ranks' are still there
                self._swap_folder.parent.rmdir()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        alone = self.world_size == 1
        _forget_libraries_state()
        restore_environment(self._environment)
        if alone and self._owns_group:
            _leave_process_group()
        else:
            atexit.unregister(_leave_process_group)
            atexit.register(_leave_process_group)

    # ------------------------------------------------------------ states

    def save_state(self, folder: Path, write: Callable[[Any, Path], None]) -> None:
        """Have this rank's part of weights that train, buffers, optimizer and loss scale written. Collective.

        `write(value, path)` writes a value into `folder`, or copies it to be written later; it does not raise.
        """
        if self.strategy.on_disk:
            save_swapped(self.module, folder / SHARDS, write, rank=self.rank)
        elif self.strategy.is_zero:
            self._save_engine(folder, write)
        elif self.is_main:
            scaler = self.accelerator.scaler
            state = {
                "weights": trained_state(self.unwrapped),
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            write(state, folder / "state.pt")

    def _save_engine(self, folder: Path, write: Callable[[Any, Path], None]) -> None:
        from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

        class Writer(TorchCheckpointEngine):  # DeepSpeed's own place for another way of writing, and of reading
            def save(self, state_dict: Any, path: str) -> None:
                if state_dict.get("module"):  # DeepSpeed leaves out frozen weights, not the scales of quantised ones
                    weights = state_dict["module"]
                    state_dict["module"] = {name: weights[name] for name in weights if name in kept}
                write(state_dict, Path(path))

        engine: Any = self.module
        kept = _kept_names(self.unwrapped)
        usual, engine.checkpoint_engine = engine.checkpoint_engine, Writer()
        try:
            # frozen base weights are on disk already, where the model came from
            engine.save_checkpoint(str(folder), tag=SHARDS, exclude_frozen_parameters=True, save_latest=False)
        except OSError:
            # rank 0 copying DeepSpeed's recovery scripts; what is left of the save, in which the others wait for it:
            if self.strategy.shards_weights:
                engine.optimizer.checkpoint_event_epilogue()
            torch.distributed.barrier()
            raise
        finally:
            engine.checkpoint_engine = usual

    def load_state(self, folder: Path, *, weights_only: bool = False) -> None:
        """Read what `save_state` wrote, also with another number of processes or ZeRO stage. Collective.

        `weights_only`: the optimizer is not needed any more. Raises UserError, on every rank, where the optimizer's
        state cannot be cut for this number of processes.
        """
        if self.strategy.on_disk:
            load_swapped(self.module, folder / SHARDS, rank=self.rank)
            return
        if self.strategy.is_zero:
            with self._cut_for_us(folder) as fitting:
                self._load_engine(fitting)
            return
        state = load_tensors(folder / "state.pt")
        _load_trained_state(self.unwrapped, state["weights"])
        if not weights_only:
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"] is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])

    def _load_engine(self, folder: Path) -> None:
        from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

        class Reader(TorchCheckpointEngine):
            def load(self, path: str, map_location: Any = None) -> Any:
                del map_location  # to the CPU, however DeepSpeed says it
                return load_tensors(Path(path), classes=_classes_of_shards())

        engine: Any = self.module
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

    @contextlib.contextmanager
    def _cut_for_us(self, folder: Path) -> Iterator[Path]:
        """The folder itself where its shards are ours, else a folder beside it with such, gone afterwards."""
        scratch = folder.with_name(".resharded")
        read = partial(load_tensors, mmap=True, classes=_classes_of_shards())
        if self.is_main:
            remove(scratch)  # of a resume that was killed
        if cut_for(folder / SHARDS, world_size=self.world_size, stage=self.strategy.stage, read=read):
            yield folder
            return
        check_shards(folder / SHARDS, read=read)
        self.barrier()
        layout: dict[Path, dict[str, Any]] = {}  # what this rank would write if it saved now
        self._save_engine(scratch, lambda value, path: layout.update({path: value}))
        shapes = self.gather_objects([value["param_shapes"] for value in layout.values() if "param_shapes" in value])
        reshard(folder / SHARDS, layout, shapes[0][0], rank=self.rank, world_size=self.world_size, read=read)
        self.barrier()
        yield scratch
        self.barrier()
        if self.is_main:
            shutil.rmtree(scratch)

    def full_state_dict(self) -> dict[str, Tensor] | None:
        """All weights on the CPU of rank 0, None elsewhere. Collective under ZeRO-3."""
        sharded = self.strategy.shards_weights
        state = self.accelerator.get_state_dict(self.module) if sharded else self.unwrapped.state_dict()
        return {name: weight.cpu() for name, weight in state.items()} if self.is_main else None


def _classes_of_shards() -> list[Any]:
    """What DeepSpeed's files hold besides tensors and plain values; each of these only keeps numbers."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _swap_folder(config: DistributedConfig) -> Path:
    """This rank's own."""
    return Path(config.offload_dir or "") / f"rank-{int(os.environ.get('RANK', '0')):05d}"


def _check_async_io(strategy: Strategy) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            f"distributed.strategy = {strategy.name} reads and writes by libaio, which DeepSpeed does not find here; "
            "install it (Debian and Ubuntu: apt-get install libaio-dev), or use zero3_offload."
        )


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


def _said_of_strategy(strategy: Strategy) -> list[str]:
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


def _lay_rows_first(module: nn.Module) -> None:
    """Convolutions in channels-last memory back into plain order: DeepSpeed views weights as bytes and flattens them.

    (N, C, 1, 1) counts as contiguous in both orders, so that `contiguous` would leave its strides.
    """
    for weight in module.parameters():
        if weight.ndim >= 4:
            weight.data = weight.data.reshape(-1).view(weight.shape)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Weights that train, and buffers: what a checkpoint must hold besides the base model's files."""
    kept = _kept_names(module)
    return {name: value.detach() for name, value in module.state_dict().items() if name in kept}


def _kept_names(module: nn.Module) -> set[str]:
    """Weights that train, and buffers; a quantised base has more in its state, the scales of its frozen weights."""
    trained = {name for name, weight in module.named_parameters(remove_duplicate=False) if weight.requires_grad}
    return trained | {name for name, _ in module.named_buffers(remove_duplicate=False)}


def _load_trained_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    result = module.load_state_dict(state, strict=False)
    missing = set(trained_state(module)) & set(result.missing_keys)
    if missing or result.unexpected_keys:
        raise UserError(
            f"the checkpoint does not fit the model: {len(missing)} trained weights are missing in it and "
            f"{len(result.unexpected_keys)} are unknown, e.g. "
            f"{sorted([*missing, *result.unexpected_keys])[0]}; resume with the configuration it was made with."
        )


@contextlib.contextmanager
def leaving_no_trace() -> Iterator[None]:
    """However what is done within ends, the process is then as it was, and within nothing of the caller's counts.

    That is: the environment, what Accelerate, transformers and DeepSpeed keep for a process, the process group of one
    process, random generators, what torch does by default, and the number of its threads.
    """
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kept = [(kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState, GradientState)]
    environment, generators, threads = found_environment(), random_state(), torch.get_num_threads()
    linear, grouped = nn.functional.linear, torch.distributed.is_initialized()
    for kind, _ in kept:
        kind._shared_state.clear()
    try:
        with plain_torch():
            yield
    finally:
        _forget_libraries_state()
        for kind, state in kept:
            kind._shared_state.update(state)
        if not grouped and torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1:
            _leave_process_group()
        nn.functional.linear = linear  # ZeRO-3's stays, by DeepSpeed's own words, "unless manually reset"
        restore_environment(environment)
        torch.set_num_threads(threads)
        set_random_state(generators)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Gradients, float32 and the CPU by default, without autocast: whatever the caller is within."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        # looking would start CUDA, on the first device of all ranks, before each has its own
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Bring back what `random_state` gave."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def _forget_libraries_state() -> None:
    """Accelerate and transformers keep a strategy for the life of a process; the next run may have another."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if "transformers.integrations.deepspeed" in sys.modules:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _leave_process_group() -> None:
    if not torch.distributed.is_initialized():
        return
    if "deepspeed" in sys.modules:
        from deepspeed import comm

        if comm.is_initialized():
            comm.destroy_process_group()  # and forget the groups that DeepSpeed has made of it
            return
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _operators(strategy: Strategy, *, cuda: bool) -> list[str]:
    """DeepSpeed's operators that a run under ZeRO has compiled, by the names of their folders."""
    needed = {
        "deepspeed_shm_comm": not cuda,  # sums between the processes of a machine without a GPU
        "cpu_adam": strategy.offloads_optimizer,
        "async_io": strategy.on_disk,
    }
    return [name for name, is_needed in needed.items() if is_needed]


def _wait_for_compilers(operators: list[str]) -> None:
    """Until nobody compiles these operators any more, so that no rank waits for a compiler that was killed.

    What torch locks a folder with (torch.utils.cpp_extension.load) stays when its process is killed, and all that
    come after it wait for ever. Where nothing was written for `COMPILER_S`, the first rank of the machine removes it.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in [lock for name in operators for lock in root.glob(f"**/{name}/lock")]:
        while lock.exists():
            with contextlib.suppress(FileNotFoundError):
                silent_s = time.time() - max(path.stat().st_mtime for path in lock.parent.iterdir())
                if silent_s > COMPILER_S and int(os.environ.get("LOCAL_RANK", "0")) == 0:
                    log.warning("%s is left of a compiler that was killed; removing it", lock)
                    lock.unlink()
            time.sleep(0.2)


def _deepspeed_plugin(strategy: Strategy, config: DistributedConfig, *, precision: str, max_grad_norm: float) -> Any:
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
            settings["zero_optimization"][part]["nvme_path"] = str(_swap_folder(config))
        _check_async_io(strategy)
    # the launcher's own variables must not add to what is written here; torchrun and srun set none
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**alone, "MASTER_PORT": str(_free_port())}.items():
        os.environ.setdefault(name, value)
    return DeepSpeedPlugin(
        hf_ds_config=settings, gradient_accumulation_steps=NOMINAL_ACCUMULATION, zero3_init_flag=False
    )
