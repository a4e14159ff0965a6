"""A user's own task: one Python file that `task.file` names, with its settings and its class."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import xxhash
from pydantic import ConfigDict, field_validator

from ftscale.base.errors import UserError
from ftscale.config.tasks.base import TaskSettings

_strangers: ContextVar[bool] = ContextVar("strangers", default=False)
_loaded: dict[Path, ModuleType] = {}
"""Modules by the real path of their file."""


class OwnTaskSettings(TaskSettings):
    """Settings of a task that a file of the user's describes; its class there is the one that `task` means.

    The file also holds one subclass of `ftscale.tasks.base.Task`, which is made of these settings.
    """

    file: str
    """The Python file that describes the task."""

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(Path(value).expanduser().resolve())


class UnreadTaskSettings(OwnTaskSettings):
    """What a run folder says of a task whose file is not run: its settings as they stand there."""

    model_config = ConfigDict(extra="allow", frozen=True)
    columns = ()
    label_columns = frozenset()
    name: str = ""


def own_settings(data: dict[str, Any]) -> OwnTaskSettings:
    """The settings that a `task` section with a `file` means. Raises ValueError where it cannot."""
    file = data["file"]
    if not isinstance(file, str):
        raise ValueError("file must be the path of a Python file")
    if _strangers.get() and Path(file).expanduser().resolve() not in _loaded:
        return UnreadTaskSettings.model_validate(data)
    return the_one(load_file(file), OwnTaskSettings).model_validate(data)


def load_file(file: str) -> ModuleType:
    """The module that a file makes, run once in a process. Raises ValueError where that is not possible."""
    path = Path(file).expanduser().resolve()
    if path in _loaded:
        return _loaded[path]
    if not path.is_file():
        raise ValueError(f"file = {file!r} is not a file; name the Python file that describes the task")
    name = f"ftscale_own_{path.stem}_{xxhash.xxh3_64_hexdigest(str(path).encode())}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"file = {file!r} must be a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"file = {file!r} ends in an error when it is run: {_told(error, path)}") from error
    _loaded[path] = module
    return module


def the_one(module: ModuleType, kind: type) -> Any:
    """The one class of a kind that a module defines. Raises ValueError where there is none, or several."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found) or "none"
        raise ValueError(f"file = {module.__file__!r} must define one subclass of {kind.__name__}, and has {names}")
    return found[0]


def file_hash(settings: TaskSettings) -> str:
    """A hash of the file's text, by which prepared rows and resumed runs know a task; "" for a task of ftscale's."""
    if not isinstance(settings, OwnTaskSettings):
        return ""
    try:
        return xxhash.xxh3_128_hexdigest(Path(settings.file).read_bytes())
    except OSError as error:
        raise UserError(f"task.file = {settings.file!r} cannot be read: {error.strerror}; put it back.") from error


@contextmanager
def reading_of_strangers() -> Iterator[None]:
    """Inside, a configuration runs no file that this process has not run already: it may be anybody's."""
    token = _strangers.set(True)
    try:
        yield
    finally:
        _strangers.reset(token)


def _told(error: Exception, path: Path) -> str:
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" in line {line}" if line else ""
    return f"{type(error).__name__}{where}: {error}"
