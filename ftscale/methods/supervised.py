"""Supervised learning: what the task says."""

from __future__ import annotations

from ftscale.methods.base import Method


class Supervised(Method):
    """The method of `method: supervised`, and of a configuration that names none: the task, and nothing else."""
