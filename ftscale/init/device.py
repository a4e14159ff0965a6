"""This machine's devices as `ftscale plan` knows them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ftscale.plan.devices import Device, device_names, load_device

CPU_INFO = Path("/proc/cpuinfo")
BF16 = 8
"""Compute capability from which on a GPU multiplies bf16 (Ampere)."""
NEAR = 0.1
"""By how much the memory of a device may differ from the table's, as a share."""


@dataclass(frozen=True)
class Machine:
    """What trains here."""

    device: Device
    count: int
    about: str
    """In words."""
    halves: str | None = None
    """The precision of half the bytes that it computes quickly; None = none."""

    @property
    def gpu(self) -> str | None:
        """Its key in the table of devices; None = this machine's processor."""
        return self.device.key if self.device.is_gpu else None


def this_machine() -> Machine:
    """Return the GPUs that PyTorch sees, by the nearest device of the table, else the processor."""
    import torch

    if not torch.cuda.is_available():
        device = load_device(None)
        return Machine(device, 1, "this machine without a GPU", "bf16" if _has_bf16() else None)
    found = torch.cuda.get_device_properties(0)
    device = like(found.name, found.total_memory / 2**30)
    count = torch.cuda.device_count()
    halves = "bf16" if found.major >= BF16 else "fp16"
    return Machine(device, count, f"each {found.name}, planned as {device.name}", halves)


def _has_bf16() -> bool:
    """Whether the processor multiplies bf16 itself; by steps in between it is slower than fp32."""
    try:
        flags = set(CPU_INFO.read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def like(name: str, memory_gib: float) -> Device:
    """Return the device of the table by its name and memory; else the largest that has no more memory."""
    known = [load_device(key) for key in device_names()]
    parts = set(re.findall(r"[a-z]*\d+[a-z]*", name.lower()))
    for device in known:
        series = device.key.split("-")[0].removeprefix("rtx")
        if series in parts and abs(device.memory_gib - memory_gib) <= NEAR * memory_gib:
            return device
    smaller = [device for device in known if device.memory_gib <= memory_gib * (1 + NEAR)]
    return max(smaller, key=lambda device: device.memory_gib) if smaller else min(known, key=lambda it: it.memory_gib)
