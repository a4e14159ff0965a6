"""Settings of supervised learning."""

from __future__ import annotations

from typing import Literal

from ftscale.config.methods.base import MethodSettings


class SupervisedSettings(MethodSettings):
    """The task's own loss on its own rows, and nothing else."""

    name: Literal["supervised"] = "supervised"
    """The method."""
