"""Tasks: one file each, named as its settings' file in `ftscale/config/tasks/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftscale.config.own_task import class_of
from ftscale.config.tasks.base import TaskSettings

if TYPE_CHECKING:
    from ftscale.tasks.base import Task


def task_class(settings: TaskSettings) -> type[Task]:
    """The class of the task that a config's `task` section describes, imported when it is asked for."""
    from ftscale.tasks.base import Task

    return class_of(settings, section="task", base=Task)


def build_task(settings: TaskSettings, processor: Any = None) -> Task:
    """The task that a config's `task` section describes, bound to its processor where there is one.

    Raises UserError for settings that it cannot meet.
    """
    return task_class(settings)(settings, processor)
