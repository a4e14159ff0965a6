"""Tasks: one file each, named as its settings' file in `ftscale/config/tasks/`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ftscale.base.errors import UserError
from ftscale.config.own_task import OwnTaskSettings, UnreadTaskSettings, load_file, the_one
from ftscale.config.tasks.base import TaskSettings

if TYPE_CHECKING:
    from ftscale.tasks.base import Task


def task_class(settings: TaskSettings) -> type[Task]:
    """The class of the task that a config's `task` section describes, imported when it is asked for.

    It has the name of its settings' class without "Settings"; a file of the user's has one alone.
    """
    if isinstance(settings, UnreadTaskSettings):
        raise UserError(
            f"task.file = {settings.file!r} is a Python file that the run folder names, whose code is run only where "
            "you say so; read it, then add --trust-remote-code."
        )
    if isinstance(settings, OwnTaskSettings):
        from ftscale.tasks.base import Task

        try:
            return the_one(load_file(settings.file), Task)
        except ValueError as error:
            raise UserError(f"task.{error}.") from error
    module = import_module(f"ftscale.tasks.{settings.name}")
    return getattr(module, type(settings).__name__.removesuffix("Settings"))


def build_task(settings: TaskSettings, processor: Any = None) -> Task:
    """The task that a config's `task` section describes, bound to its processor where there is one.

    Raises UserError for settings that it cannot meet.
    """
    return task_class(settings)(settings, processor)
