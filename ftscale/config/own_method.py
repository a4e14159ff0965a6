"""A user's own method: one Python file that `method.file` names, with its settings and its class."""

from __future__ import annotations

from pydantic import ConfigDict

from ftscale.config.methods.base import MethodSettings
from ftscale.config.own_task import OwnFile, OwnTaskSettings, UnreadTaskSettings


class OwnMethodSettings(OwnFile, MethodSettings):
    """Settings of a method that a file of the user's describes; its class there is the one that `method` means.

    The file also holds one subclass of `ftscale.methods.base.Method`, which is made of these settings and a task.
    """


class UnreadMethodSettings(OwnMethodSettings):
    """What a run folder says of a method whose file is not run: its settings as they stand there."""

    model_config = ConfigDict(extra="allow", frozen=True)
    is_run = False
    name: str = ""


OWN: dict[str, tuple[type[OwnFile], type[OwnFile]]] = {
    "task": (OwnTaskSettings, UnreadTaskSettings),
    "method": (OwnMethodSettings, UnreadMethodSettings),
}
"""By section: what the settings in a user's file are made of, and what stands for them where it is not run."""
