"""One seed in the config, and the independent streams of random numbers made from it."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names`, the same on every machine and Python version."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices), as `accelerate.utils.set_seed` does."""
    from accelerate.utils import set_seed

    set_seed(seed % 2**32)
