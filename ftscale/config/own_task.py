"""A user's own task: one Python file that `task.file` names, with its settings and its class.

How such a file is found, run and hashed is the same for every section that may name one (config/own_method.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import xxhash
from pydantic import ConfigDict, field_validator

from ftscale.base.errors import UserError
from ftscale.config.section import Section
from ftscale.config.tasks.base import TaskSettings

_strangers: ContextVar[bool] = ContextVar("strangers", default=False)
_loaded: dict[Path, ModuleType] = {}
"""Modules by the real path of their file."""


class OwnFile(Section):
    """A section of the configuration that a Python file of the user's describes."""

    is_run: ClassVar[bool] = True
    """Whether these are the file's own settings: the file has been run."""
    file: str
    """The Python file that describes it."""

    @field_validator("file")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return str(Path(value).expanduser().resolve())


class OwnTaskSettings(OwnFile, TaskSettings):
    """Settings of a task that a file of the user's describes; its class there is the one that `task` means.

    The file also holds one subclass of `ftscale.tasks.base.Task`, which is made of these settings.
    """


class UnreadTaskSettings(OwnTaskSettings):
    """What a run folder says of a task whose file is not run: its settings as they stand there."""

    model_config = ConfigDict(extra="allow", frozen=True)
    is_run = False
    columns = ()
    label_columns = frozenset()
    name: str = ""


def own_class(file: Any, *, section: str, own: type[OwnFile], unread: type[OwnFile]) -> type[OwnFile]:
    """The settings' class of a section that names a file, among those of kind `own`; `unread` where it is not run.

    Raises ValueError where there is no such class.
    """
    if not isinstance(file, str):
        raise ValueError("file must be the path of a Python file")
    if _strangers.get() and Path(file).expanduser().resolve() not in _loaded:
        return unread
    return the_one(load_file(file, section=section), own)


def class_of(settings: Any, *, section: str, base: type) -> Any:
    """The class that settings are for: of this `base` in the user's file, or in the package's file of their name.

    There it has the name of the settings' class without "Settings". `section`: task or method. Raises UserError.
    """
    if not isinstance(settings, OwnFile):
        module = importlib.import_module(f"ftscale.{section}s.{settings.name}")
        return getattr(module, type(settings).__name__.removesuffix("Settings"))
    if not settings.is_run:
        raise UserError(
            f"{section}.file = {settings.file!r} is a Python file that the run folder names, whose code is run only "
            "where you say so; read it, then add --trust-remote-code."
        )
    try:
        return the_one(load_file(settings.file, section=section), base)
    except ValueError as error:
        raise UserError(f"{section}.{error}.") from error


def load_file(file: str, *, section: str) -> ModuleType:
    """The module that a file makes, run once in a process. Raises ValueError where that is not possible."""
    path = Path(file).expanduser().resolve()
    if path in _loaded:
        return _loaded[path]
    if not path.is_file():
        raise ValueError(f"file = {file!r} is not a file; name the Python file that describes the {section}")
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


def file_hash(settings: Section, *, section: str) -> str:
    """A hash of the file's text, by which prepared rows and resumed runs know it; "" for what is ftscale's own."""
    if not isinstance(settings, OwnFile):
        return ""
    try:
        return xxhash.xxh3_128_hexdigest(Path(settings.file).read_bytes())
    except OSError as error:
        raise UserError(f"{section}.file = {settings.file!r} cannot be read: {error.strerror}; put it back.") from error


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
