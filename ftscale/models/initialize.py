"""New weights from a seed of their own, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ftscale.base.seeding import derive_seed


@contextmanager
def seeded_weights(seed: int, *names: str) -> Iterator[None]:
    """Random numbers inside come from (seed, names); the generators outside are left as they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(seed, "weights", *names))
        yield
