"""What a run and its libraries keep for a whole process, put back when the run ends."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ftscale.base.startup import found_environment, restore_environment


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
        forget_libraries_state()
        for kind, state in kept:
            kind._shared_state.update(state)
        if not grouped and torch.distributed.is_initialized() and torch.distributed.get_world_size() == 1:
            leave_process_group()
        nn.functional.linear = linear  # ZeRO-3's stays, by DeepSpeed's own words, "unless manually reset"
        forget_zero_init()
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


def forget_zero_init() -> None:
    """Take off `nn.Module` what `zero.Init` leaves there: an `__init_subclass__`, where the class has none of its own.

    It hides the one of `typing.Generic` from every class that is made later (kornia's, at its import, are such).
    """
    if "__init_subclass__" in vars(nn.Module):
        del nn.Module.__init_subclass__


def forget_libraries_state() -> None:
    """Accelerate and transformers keep a strategy for the life of a process; the next run may have another."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if "transformers.integrations.deepspeed" in sys.modules:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def leave_process_group() -> None:
    """End this process's part in the group of all, and what DeepSpeed has made of it."""
    if not torch.distributed.is_initialized():
        return
    if "deepspeed" in sys.modules:
        from deepspeed import comm

        if comm.is_initialized():
            comm.destroy_process_group()  # and forget the groups that DeepSpeed has made of it
            return
    torch.distributed.destroy_process_group()
