"""Methods: one file each, named as its settings' file in `ftscale/config/methods/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftscale.config.methods.base import MethodSettings
from ftscale.config.own_task import class_of
from ftscale.config.tasks.base import TaskSettings
from ftscale.tasks import build_task

if TYPE_CHECKING:
    from ftscale.methods.base import Method


def build_method(settings: MethodSettings, task: TaskSettings, processor: Any = None) -> Method:
    """What a config's `method` section describes, of what its `task` section does, bound to its processor if any.

    Raises UserError for settings that method or task cannot meet.
    """
    from ftscale.methods.base import Method

    return class_of(settings, section="method", base=Method)(settings, build_task(task, processor))
