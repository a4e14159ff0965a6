"""The settings of every task: one file each, which is found by listing this folder."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ftscale.config.tasks.base import TaskSettings

NOT_TASKS = ("__init__", "base")


def _found() -> dict[str, type[TaskSettings]]:
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_TASKS)
    return {name: settings_in(vars(import_module(f"{__name__}.{name}")), name=name) for name in names}


def settings_in(module: dict[str, object], *, name: str) -> type[TaskSettings]:
    """The one class of a module that describes the task of this name."""
    [settings] = [
        value
        for value in module.values()
        if isinstance(value, type)
        and issubclass(value, TaskSettings)
        and "name" in value.model_fields
        and value.model_fields["name"].default == name
    ]
    return settings


SETTINGS = _found()
"""The settings' class by the task's name."""
