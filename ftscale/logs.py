"""Logging that knows its rank: rank 0 speaks at INFO, the others only in warnings, with rank and host."""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings

log = logging.getLogger("ftscale")


def setup_logging(*, rank: int = 0, level: str = "INFO") -> None:
    """Send ftscale's log lines to stderr; other libraries speak from WARNING on."""
    who = "" if rank == 0 else f"[rank {rank} on {socket.gethostname()}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {who}%(message)s", datefmt="%H:%M:%S"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level if rank == 0 else logging.WARNING)


def launched_rank() -> int:
    """This process's rank as the launcher says it (torchrun, accelerate or srun), before any process group exists."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def quiet_libraries() -> None:
    """No bars and notes of libraries between ftscale's own lines. Call it before they are imported."""
    # bitsandbytes tells at import that an optional CPU kernel package is not installed
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # peft 0.21 asks transformers 5.23 by an older name of a property
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing.*")
