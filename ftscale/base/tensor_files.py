"""Reading what torch.save wrote: tensors and plain values, never what a pickle would run as it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ftscale.base.errors import UserError


def load_tensors(path: Path, *, mmap: bool = False, classes: Sequence[Any] = ()) -> Any:
    """The content of a file of torch.save, on the CPU.

    `mmap`: tensors are read where they are touched; `classes`: what may stand there besides tensors and plain values.
    Raises UserError for whatever else stands there, unread.
    """
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or made-up pickle ends in errors of any kind
        raise refusal(path, error) from error


def refusal(path: Path, error: Exception) -> UserError:
    """What there is to say of a file of a checkpoint that is not what ftscale writes."""
    return UserError(
        f"{path} is not what ftscale writes ({_reason(error)}), so that it is not read: a file made by somebody else "
        "can run code. Find out who wrote it; without its checkpoint's folder, --resume goes on from the one before."
    )


def _reason(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    named = re.search(r"GLOBAL ([\w.]+)", text)  # in the midst of torch's long message
    return f"it names {named[1]}" if named else text.splitlines()[0].rstrip(".")
