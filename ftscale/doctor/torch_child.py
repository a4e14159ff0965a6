"""What torch says of this machine, as one line of JSON: a program of its own, since a driver may hang or crash it.

It imports nothing of ftscale's; `software.py` starts it by its path and waits no longer than a while.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MARK = "ftscale doctor: "


def main() -> None:
    """Print what torch knows; what it cannot tell stands under `errors` by name."""
    import torch

    probes: dict[str, Callable[[], Any]] = {
        "version": lambda: str(torch.__version__),
        "cuda": lambda: torch.version.cuda,
        "rocm": lambda: torch.version.hip,
        "devices": _devices,
        "bf16": _bf16,
        "nccl": _nccl,
        "gloo": _gloo,
        "flash_kernel": _flash_kernel,
        "extensions": _extensions,
        "threads": torch.get_num_threads,
    }
    found: dict[str, Any] = {"errors": {}}
    for name, probe in probes.items():
        try:
            found[name] = probe()
        except Exception as error:  # each of them is a line of its own
            found[name], found["errors"][name] = None, f"{type(error).__name__}: {error}"[:200]
    print(MARK + json.dumps(found), flush=True)


def _devices() -> list[dict[str, Any]]:
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        capability = [about.major, about.minor]
        found.append({"name": about.name, "memory_bytes": about.total_memory, "capability": capability})
    return found


def _bf16() -> bool:
    """Whether the GPU computes in bf16 by itself."""
    import torch

    return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False))


def _nccl() -> str | None:
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_nccl_available():
        return None
    version = torch.cuda.nccl.version()
    return ".".join(map(str, version)) if isinstance(version, tuple) else str(version)


def _gloo() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_gloo_available()


def _flash_kernel() -> bool:
    """Whether torch's attention over rows of several lengths is there and this GPU is new enough for it."""
    import torch

    try:
        import torch.nn.attention.varlen  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def _extensions() -> str:
    from torch.utils.cpp_extension import get_default_build_root

    return get_default_build_root()


if __name__ == "__main__":
    main()
