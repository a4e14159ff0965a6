"""Processes, strategies and devices: the only file that knows DeepSpeed and Accelerate's sharp edges."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftscale.base.errors import UserError, counted
from ftscale.base.files import remove
from ftscale.base.launched import adopt_launch, check_launch
from ftscale.base.logs import log
from ftscale.base.startup import found_environment, restore_environment
from ftscale.base.tensor_files import load_tensors
from ftscale.config.schema import DistributedConfig
from ftscale.distributed.compilers import operators, wait_for_compilers
from ftscale.distributed.engine import (
    NOMINAL_ACCUMULATION,
    SHARDS,
    classes_of_shards,
    deepspeed_plugin,
    frozen_engine,
    lay_rows_first,
    load_engine,
    save_engine,
    swap_folder,
)
from ftscale.distributed.nvme_state import load_swapped, save_swapped
from ftscale.distributed.process_state import forget_libraries_state, forget_zero_init, leave_process_group
from ftscale.distributed.reshard import check_shards, cut_for, reshard
from ftscale.distributed.strategy import resolve_strategy, said_of_strategy


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
        said = said_of_strategy(self.strategy)
        place = adopt_launch(precision=precision)
        for line in (*said, *place.said) if place.rank == 0 else ():
            log.warning("%s", line)
        self._swap_folder = swap_folder(config)
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        cuda = torch.cuda.is_available()
        os.environ["DS_ACCELERATOR"] = "cuda" if cuda else "cpu"
        if not cuda and precision == "fp16":
            raise UserError("train.precision = fp16 needs a GPU, and there is none here; use bf16 or fp32.")
        plugin = deepspeed_plugin(self.strategy, config, precision=precision, max_grad_norm=max_grad_norm)
        if plugin is not None:
            wait_for_compilers(operators(self.strategy, cuda=cuda))
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
            lay_rows_first(module)
        self.unwrapped = module
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        forget_zero_init()
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

    def shard_frozen(self, module: nn.Module) -> nn.Module:
        """A model that does not train, under ZeRO-3: each rank holds a piece, and all of them call it together."""
        zero = self.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        engine = frozen_engine(module, zero, offloads_weights=self.strategy.offloads_weights)
        forget_zero_init()
        engine.data_parallel_group.set_timeout(self._timeout)
        return engine

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
        """The global norm of the gradients: each row's in its own type, their sum in float32.

        bfloat16 rounds a norm to three digits. Over the 100 weights of MiniLM the sum is off by 3e-5 and takes 2 ms on
        a CPU; with converted gradients, 20 ms.
        """
        norms = [_norm(weight.grad) for weight in weights if weight.grad is not None]
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
        """Free the engine, so that another run can follow in the same process.

        The process group of several processes stays until they end: they may not come to its end together.
        """
        self.accelerator.free_memory()
        if self.strategy.on_disk:
            shutil.rmtree(self._swap_folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the other ranks' are still there
                self._swap_folder.parent.rmdir()
        alone = self.world_size == 1
        forget_libraries_state()
        restore_environment(self._environment)
        if alone and self._owns_group:
            leave_process_group()
        else:
            atexit.unregister(leave_process_group)
            atexit.register(leave_process_group)

    # ------------------------------------------------------------ states

    def save_state(self, folder: Path, write: Callable[[Any, Path], None]) -> None:
        """Have this rank's part of weights that train, buffers, optimizer and loss scale written. Collective.

        `write(value, path)` writes a value into `folder`, or copies it to be written later; it does not raise.
        """
        if self.strategy.on_disk:
            save_swapped(self.module, folder / SHARDS, write, rank=self.rank)
        elif self.strategy.is_zero:
            self._save_shards(folder, write)
        elif self.is_main:
            scaler = self.accelerator.scaler
            state = {
                "weights": trained_state(self.unwrapped),
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            write(state, folder / "state.pt")

    def _save_shards(self, folder: Path, write: Callable[[Any, Path], None]) -> None:
        kept = _kept_names(self.unwrapped)
        save_engine(self.module, folder, write, kept=kept, shards_weights=self.strategy.shards_weights)

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
                load_engine(self.module, fitting)
            return
        state = load_tensors(folder / "state.pt")
        _load_trained_state(self.unwrapped, state["weights"])
        if not weights_only:
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"] is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])

    @contextlib.contextmanager
    def _cut_for_us(self, folder: Path) -> Iterator[Path]:
        """The folder itself where its shards are ours, else a folder beside it with such, gone afterwards."""
        scratch = folder.with_name(".resharded")
        read = partial(load_tensors, mmap=True, classes=classes_of_shards())
        if self.is_main:
            remove(scratch)  # of a resume that was killed
        if cut_for(folder / SHARDS, world_size=self.world_size, stage=self.strategy.stage, read=read):
            yield folder
            return
        check_shards(folder / SHARDS, read=read)
        self.barrier()
        layout: dict[Path, dict[str, Any]] = {}  # what this rank would write if it saved now
        self._save_shards(scratch, lambda value, path: layout.update({path: value}))
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


def _norm(gradient: Tensor) -> Tensor:
    """() float32: the norm of the norms of its rows, whose squares `sum` adds up in pairs.

    `vector_norm` adds one by one: of MiniLM's dense embedding (30522 x 384, float32) it is 1.7e-3 too small on a CPU
    (torch 2.13), by rows less than 1e-5; both take 1.4 ms.
    """
    if gradient.ndim > 1:
        gradient = torch.linalg.vector_norm(gradient, dim=tuple(range(1, gradient.ndim)))
    return gradient.float().square().sum().sqrt()


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
