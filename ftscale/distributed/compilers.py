"""DeepSpeed's operators, which are compiled where they are first used."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from ftscale.base.logs import log
from ftscale.config.strategies import Strategy

COMPILER_S = 600.0  # a file of DeepSpeed's takes two minutes at most


def operators(strategy: Strategy, *, cuda: bool) -> list[str]:
    """DeepSpeed's operators that a run under ZeRO has compiled, by the names of their folders."""
    needed = {
        "deepspeed_shm_comm": not cuda,  # sums between the processes of a machine without a GPU
        "cpu_adam": strategy.offloads_optimizer,
        "async_io": strategy.on_disk,
    }
    return [name for name, is_needed in needed.items() if is_needed]


def wait_for_compilers(operators: list[str]) -> None:
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
