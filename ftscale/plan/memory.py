"""Bytes of a device: a step's moments, and what a strategy, an optimizer and quantisation make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ftscale.base.resources import resource
from ftscale.config import Config
from ftscale.config.strategies import Strategy
from ftscale.optim.master_weights import CHUNK
from ftscale.plan.dry_run import DryStep, Moment, Sizes

KINDS = (
    "weights",
    "adapter",
    "companions",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "communication",
    "quantisation",
    "reserve",
)
"""What a device's memory is used for, in the order of the report."""

FLOATS_OF_STATE = {"adamw": 2, "adam": 2, "lion": 1, "ademamix": 3, "adafactor": 0.01, "sgd": 1}
"""Numbers of optimizer state a trained weight; Adafactor keeps a row and a column of each matrix."""
SCALE_BLOCK = 256
"""Elements of bitsandbytes' 8-bit states that share a float32 scale (arXiv:2110.02861; 256 since version 0.45)."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: four bits, an 8-bit scale for 64, a float32 scale for 256 of these (double quantisation,
arXiv:2305.14314)."""
NF4_TABLES = 256 * 4 + 16 * 4 + 4
"""Bytes of a layer's lookup tables."""
INT8_BYTES = 1.0
MAX_LIVE = 1_000_000_000
"""stage3_max_live_parameters, and stage3_max_reuse_distance, of ds_configs/zero3.json."""
GPU_RESERVE = 0.04
"""Share of PyTorch's caching allocator that fragments of blocks take, beside CONTEXT_BYTES."""
CONTEXT_BYTES = 600 * 2**20
"""The CUDA context, cuBLAS workspace and kernels of a process (PyTorch documentation, page CUDA semantics)."""

CPU_RESERVE = 25 * 2**20
"""What a process grows by besides tensors, or by a second copy of its largest matrix, which oneDNN lays out anew for a
bfloat16 product (benchmarks/plan_accuracy.py: 46 to 61 MB were missing with a matrix of 51 MB, 22 to 35 with small).
"""

CPU_8BIT_FLOATS = 4.7
"""float32 numbers for each element of the largest weight while bitsandbytes steps it on a CPU, where it makes its 8-bit
state whole (measured with 0.50.2: 971 MB for 51 M elements)."""


@dataclass(frozen=True)
class Memory:
    """Of one device at its fullest moment, and of the machine beside it."""

    kinds: dict[str, float]
    """Bytes by kind, see KINDS."""
    host: float
    """Bytes of host memory a process, where something is offloaded."""
    nvme: float
    """Bytes on the local disk a process."""

    @property
    def total(self) -> float:
        """Bytes of the device."""
        return sum(self.kinds.values())


def forecast_memory(config: Config, step: DryStep, *, strategy: Strategy, world_size: int, on_gpu: bool) -> Memory:
    """The fullest of the step's moments and of the optimizer's step, by kind."""
    parts = _Parts(config=config, sizes=step.sizes, strategy=strategy, world_size=world_size, on_gpu=on_gpu)
    moments = [parts.at(moment) for moment in step.moments]
    moments.append(parts.at_update())
    fullest = max(moments, key=lambda kinds: sum(kinds.values()))
    kinds = {kind: float(fullest.get(kind, 0.0)) for kind in KINDS}
    if on_gpu:
        kinds["reserve"] = GPU_RESERVE * sum(kinds.values()) + CONTEXT_BYTES
    else:
        kinds["reserve"] = max(CPU_RESERVE, 2 * step.sizes.largest if config.train.precision == "bf16" else 0)
    return Memory(kinds, *parts.outside())


def zero_settings(strategy: Strategy) -> dict[str, Any]:
    """`zero_optimization` of the strategy's file in ds_configs/; empty without DeepSpeed."""
    if strategy.file is None:
        return {}
    return json.loads(resource("ds_configs", strategy.file).read_text())["zero_optimization"]


def state_bytes(optimizer: str, elements: float, *, momentum: float = 0.9) -> float:
    """Of the optimizer's state for so many trained weights."""
    family = optimizer.removeprefix("paged_").removesuffix("_8bit")
    floats = FLOATS_OF_STATE[family]
    if family == "sgd" and not momentum:
        floats = 0
    if optimizer.endswith("_8bit"):
        return elements * floats * (1 + 4 / SCALE_BLOCK)
    return elements * floats * 4


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The bytes of a strategy's parts."""

    config: Config
    sizes: Sizes
    strategy: Strategy
    world_size: int
    on_gpu: bool

    # ------------------------------------------------------------ the parts

    @property
    def shares(self) -> int:
        return self.world_size if self.strategy.is_zero else 1

    @property
    def weight_bytes(self) -> float:
        """Of one trained weight on the device."""
        if self.strategy.is_zero and self.config.train.precision == "fp16":
            return 2.0
        return self.sizes.trained_bytes / max(self.sizes.trained, 1)

    def frozen(self) -> float:
        """Frozen weights; a quantised base in its few bits."""
        base = self.sizes.bytes - self.sizes.trained_bytes
        full = self.sizes.bytes / max(self.sizes.elements, 1)
        if self.config.model.quantization == "nf4":
            return base + self.sizes.matrices * (NF4_BYTES - full) + self.sizes.num_matrices * NF4_TABLES
        if self.config.model.quantization == "int8":
            return base + self.sizes.matrices * (INT8_BYTES - full)
        return base

    def dequantised(self) -> float:
        """The largest quantised layer, made whole for its product."""
        if self.config.model.quantization == "none":
            return 0.0
        whole = self.sizes.largest_matrix * (2 if self.config.train.precision != "fp32" else 4)
        # on a CPU the weights file stays mapped for the layers that are not quantised, with all pages that were read
        return whole if self.on_gpu else whole + 2 * self.sizes.matrices

    def masters(self) -> float:
        """float32 copies of trained weights."""
        if self.strategy.is_zero:
            return self.sizes.trained * 4 / self.shares
        return self.sizes.trained * 4 if self.config.train.precision == "bf16" else 0.0

    def states(self) -> float:
        optimizer = self.config.optimizer
        return state_bytes(optimizer.name, self.sizes.trained / self.shares, momentum=optimizer.momentum)

    def scratch(self) -> float:
        """float32 gradients of some weights, which MasterWeights keeps."""
        if self.strategy.is_zero or self.config.train.precision != "bf16":
            return 0.0
        return 4 * min(self.sizes.trained, max(CHUNK, self.sizes.largest_trained))

    def buckets(self) -> float:
        """Memory for gradients on their way to other devices."""
        if not self.strategy.is_zero:
            reduces = self.world_size > 1 and not self.strategy.one_process
            return self.sizes.trained * self.weight_bytes if reduces else 0.0
        bucket = zero_settings(self.strategy)["reduce_bucket_size"]
        if not self.on_gpu:  # memory that nobody writes to is not there on a CPU
            bucket = min(bucket, self.sizes.trained)
        return bucket * self.weight_bytes

    # ------------------------------------------------------------ the moments

    def weights(self) -> dict[str, float]:
        trained = self.sizes.trained * self.weight_bytes
        frozen = self.frozen()
        communication = 0.0
        if self.strategy.shards_weights:
            each = (frozen + trained) / max(self.sizes.elements, 1)
            whole = self.sizes.persistent * each
            shared = frozen + trained - whole
            # pieces, and beside them the weights that are whole for a while
            communication = min(shared, MAX_LIVE * each) + min(self.sizes.companions, MAX_LIVE * each)
            kept = 0.0 if self.strategy.offloads_weights else shared / self.world_size
            scale = (kept + whole) / max(frozen + trained, 1)
            trained, frozen = trained * scale, frozen * scale
        adapts = self.config.adapter.method != "none"
        return {
            "weights": frozen + (0.0 if adapts else trained),
            "adapter": trained if adapts else 0.0,
            "companions": self.companions(),
            "communication": communication,
        }

    def companions(self) -> float:
        """Frozen models beside the one that trains: whole, or a piece of them under ZeRO-3."""
        whole = self.sizes.companions
        if not self.strategy.shards_weights:
            return whole
        return 0.0 if self.strategy.offloads_weights else whole / self.world_size

    def optimizer(self) -> float:
        return 0.0 if self.strategy.offloads_optimizer else self.masters() + self.states() + self.scratch()

    def at(self, moment: Moment) -> dict[str, float]:
        """A moment of the forward or backward pass."""
        kinds, strategy = self.weights(), self.strategy
        gradients, communication = moment["gradients"], 0.0
        if strategy.shards_weights:  # bucket and partition are made once and stay
            communication = self.buckets()
            partition = self.sizes.trained * self.weight_bytes / self.world_size
            gradients = 0.0 if strategy.offloads_optimizer else partition
        elif strategy.is_zero:  # there from a backward pass to its end; on a CPU as far as gradients were written to it
            communication = self.buckets() if gradients else 0.0
            communication = communication if self.on_gpu else min(communication, gradients)
            if strategy.stage == 2:
                gradients = 0.0 if strategy.offloads_optimizer else gradients / self.world_size
        else:
            communication = self.buckets()
        kinds["communication"] += communication
        return kinds | {
            "gradients": gradients,
            "optimizer": self.optimizer(),
            "activations": moment["activations"],
            "logits": moment["logits"],
            "quantisation": self.dequantised(),
        }

    def at_update(self) -> dict[str, float]:
        """The optimizer's step."""
        kinds = self.weights()
        trained = self.sizes.trained
        if self.strategy.shards_weights:
            kinds["communication"] = 0.0
        if not self.strategy.is_zero:
            kinds["communication"] += self.buckets()
            gradients = trained * self.weight_bytes
        else:
            offloads = self.strategy.offloads_optimizer
            gradients = 0.0 if offloads else trained / self.world_size * (self.weight_bytes + 4)
        optimizer = self.optimizer()
        if not self.on_gpu and self.config.optimizer.name.endswith("_8bit"):
            largest = trained / self.world_size if self.strategy.is_zero else self.sizes.largest_trained
            optimizer += CPU_8BIT_FLOATS * 4 * largest
        return kinds | {"gradients": gradients, "optimizer": optimizer}

    def outside(self) -> tuple[float, float]:
        """Host memory and disk of a process, where the strategy offloads."""
        if not self.strategy.offloads_optimizer:
            return 0.0, 0.0
        trained = self.sizes.trained
        # masters, state and float32 gradients, and a 16-bit copy on its way to the device
        optimizer = (trained * (4 + 4 + self.weight_bytes) + state_bytes(self.config.optimizer.name, trained)) / (
            self.world_size
        )
        weights = (self.frozen() + trained * self.weight_bytes) / self.world_size
        if not self.strategy.offloads_weights:
            return optimizer, 0.0
        companions = self.sizes.companions / self.world_size
        if not self.strategy.on_disk:
            return optimizer + weights + companions, 0.0
        settings = zero_settings(self.strategy)["offload_param"]
        buffers = settings["buffer_count"] * settings["buffer_size"] * self.weight_bytes
        return buffers + companions, optimizer + weights
