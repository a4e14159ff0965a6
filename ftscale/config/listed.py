"""Sections of which there are several kinds: one file each in a folder, found by listing it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ftscale.config.section import Section

NO_KINDS = ("__init__", "base")


def listed(package: str, base: type[Section]) -> dict[str, Any]:
    """The settings' class by its name, of each file of a package (`ftscale.config.tasks`), in the order of names."""
    folder = Path(str(import_module(package).__file__)).parent
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in NO_KINDS)
    return {name: settings_in(vars(import_module(f"{package}.{name}")), base, name=name) for name in names}


def settings_in(module: dict[str, object], base: type[Section], *, name: str) -> Any:
    """The one class of a module that has this name as the default of its `name`."""
    [settings] = [
        value
        for value in module.values()
        if isinstance(value, type)
        and issubclass(value, base)
        and "name" in value.model_fields
        and value.model_fields["name"].default == name
    ]
    return settings
