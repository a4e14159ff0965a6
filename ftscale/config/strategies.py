"""The strategies: one table of what each does with the work of a step, which everything else asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Strategy:
    """How processes share a step, e.g. `zero2_offload`: ZeRO stage 2 whose optimizer lies in host memory.

    Nobody compares names: who must know something of a strategy asks for it here.
    """

    name: str
    """As `distributed.strategy` and a checkpoint's manifest write it."""
    stage: int = 0
    """ZeRO's: 1 shards the optimizer's state, 2 the gradients too, 3 the weights too; 0 = no DeepSpeed."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where the optimizer, and in stage 3 the weights, lie instead of on the device, in DeepSpeed's words."""
    one_process: bool = False
    """It is for a process alone."""

    @property
    def is_zero(self) -> bool:
        """DeepSpeed trains, by ZeRO."""
        return self.stage > 0

    @property
    def shards_weights(self) -> bool:
        """No process holds all weights (ZeRO-3)."""
        return self.stage == 3

    @property
    def offloads_optimizer(self) -> bool:
        """The optimizer's state lies beside the device, and the optimizer steps on the CPU."""
        return self.offload != "none"

    @property
    def offloads_weights(self) -> bool:
        """The weights lie beside the device, too."""
        return self.offloads_optimizer and self.shards_weights

    @property
    def on_disk(self) -> bool:
        """What is offloaded lies on a local disk, in `distributed.offload_dir`."""
        return self.offload == "nvme"

    @property
    def file(self) -> str | None:
        """The name of its DeepSpeed config in ds_configs/; None = no DeepSpeed."""
        return f"{self.name}.json" if self.is_zero else None

    def shares_checkpoints_with(self, other: Strategy) -> bool:
        """Whether one goes on from the other's checkpoints: one optimizer, its state cut in different ways."""
        return (self.is_zero, self.offload) == (other.is_zero, other.offload)


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("single", one_process=True),
        Strategy("ddp"),
        Strategy("zero1", stage=1),
        Strategy("zero2", stage=2),
        Strategy("zero2_offload", stage=2, offload="cpu"),
        Strategy("zero3", stage=3),
        Strategy("zero3_offload", stage=3, offload="cpu"),
        Strategy("zero3_nvme", stage=3, offload="nvme"),
    )
}
"""By name. To each belong a file of its name in launch/accelerate/ and, with DeepSpeed, one in ds_configs/."""


def find_strategy(name: str | None) -> Strategy | None:
    """The strategy that is called so; None = none is, or there is no name (null leaves it to the launcher)."""
    return None if name is None else STRATEGIES.get(name)


def default_strategy(processes: int) -> Strategy:
    """Where neither configuration nor launcher names one: DDP for several processes, else a process alone."""
    return STRATEGIES["ddp" if processes > 1 else "single"]
