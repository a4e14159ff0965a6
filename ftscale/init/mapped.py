"""Columns that the user named: what the task calls them, to the file's name of each or its number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ftscale.base.errors import UserError, unknown_name
from ftscale.config.tasks import SETTINGS
from ftscale.config.yaml_text import read_yaml
from ftscale.init.look import Column, Look

Named = Mapping[str, str | int]


def named_columns(text: str) -> Named:
    """Read `{text: 2, label: 1}`. Raises UserError for another form, and for what no task calls a column."""
    found = read_yaml(text, source="--columns")
    if not isinstance(found, dict) or not found or not all(type(name) in (str, int) for name in found.values()):
        raise UserError(
            f"--columns = {text!r} must say what the task calls each column, and its name or its number from 0; write "
            "e.g. '{text: 2, label: 1}'."
        )
    roles = dict.fromkeys(role for task in SETTINGS.values() for names in task.columns for role in names)
    if unknown := next((role for role in found if role not in roles), None):
        raise UserError(unknown_name("--columns", str(unknown), roles))
    return found


def as_called(found: Look, columns: Named) -> Look:
    """Return a look at these columns alone, by what the task calls them. Raises UserError for one that is not there."""
    renamed = []
    for role, name in columns.items():
        column = found.column(name)
        if column is None:
            raise UserError(unknown_name(f"--columns {role}", str(name), [str(it.name) for it in found.columns]))
        renamed.append(Column(role, column.values))
    return replace(found, columns=renamed)
