"""The settings of every task: one file each, which is found by listing this folder."""

from __future__ import annotations

from ftscale.config.listed import listed
from ftscale.config.tasks.base import TaskSettings

SETTINGS: dict[str, type[TaskSettings]] = listed(__name__, TaskSettings)
"""The settings' class by the task's name."""
