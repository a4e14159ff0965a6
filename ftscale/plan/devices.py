"""The table of devices, and this machine's own processor."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ftscale.base.errors import UserError, unknown_name

TABLE = Path(__file__).with_name("devices.json")
CALIBRATION = Path("~/.cache/ftscale/calibration.json")


@dataclass(frozen=True)
class Device:
    """What a forecast needs to know of a device."""

    key: str
    name: str
    memory_gib: float
    """What the driver reports, in 2^30 bytes: less than on the data sheet where error correction takes its share."""
    tflops_bf16: float
    """Dense 16-bit matrix products, 10^12 operations a second, without sparsity."""
    tflops_fp32: float
    bandwidth_gb_s: float
    """Of its memory."""
    link_gb_s: float
    """One way, between the devices of a machine."""
    usd_per_hour: float
    """A price as of November 2026; clouds differ by a factor of three, so give your own with --price."""
    source: str
    """Page of the data sheet."""

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_gib * 2**30

    @property
    def is_gpu(self) -> bool:
        """Tell whether this is a GPU of the table, not this machine's processor."""
        return self.key != "cpu"

    def flops(self, precision: str) -> float:
        """Operations a second at most."""
        return 1e12 * (self.tflops_fp32 if precision == "fp32" else self.tflops_bf16)


def load_device(name: str | None, *, usd_per_hour: float | None = None) -> Device:
    """A device of the table; None = this machine without a GPU. Raises UserError for an unknown name."""
    device = this_machine() if name is None else _from_table(name)
    return device if usd_per_hour is None else replace(device, usd_per_hour=usd_per_hour)


def device_names() -> list[str]:
    """List the names that `--gpu` takes, sorted."""
    return sorted(json.loads(TABLE.read_text()))


def this_machine() -> Device:
    """Its memory; its speed as measured with one thread on two cores of a server, until it is calibrated."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", "this machine", memory / 2**30, 0.2, 0.09, 20, 10, 0.0, "measured")


def _from_table(name: str) -> Device:
    table = json.loads(TABLE.read_text())
    key = name.lower()
    if key not in table:
        raise UserError(f"{unknown_name('--gpu', name, table)} Known: {', '.join(sorted(table))}.")
    return Device(key, **table[key])
