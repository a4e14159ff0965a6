"""Values that are made of a row's columns, or of its file's name: paths into objects, templates, columns of 0 and 1.

`constants` are what `set` says of a file, `derived` what a key of `columns` says that is no column's name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ftscale.base.errors import UserError, nearest
from ftscale.data.formats.base import DataFile, is_url
from ftscale.data.formats.columns import Columns, column_number, nearest_column, shown_columns
from ftscale.data.formats.nested import NUMBER, value_at
from ftscale.data.formats.packed import without_packing
from ftscale.data.formats.template import Part, filled, is_template, parse_template
from ftscale.data.missing import with_none
from ftscale.data.values import BITS, short

NO_FILE = ("hub", "image_folder")
"""Formats whose rows stand in no file with a name of its own."""
PLACES = ("folder", "file")
"""Names in the templates of `set`."""

REFERENCES = ("target", "negative")
"""Roles that may have several texts, so that a list of columns is one of texts and not of 0 and 1."""
PLACED = ("choices",)
"""Roles of several texts of which each keeps its place, also where another one is missing."""

LEFT_OUT = frozenset(("missing", "unlabelled"))
"""Kinds of rows in `drop` that lack a value."""

Make = Callable[[Sequence[Any], str], Any]
"""The value, of the cells of the columns that it is made of and of where they stand. Raises UserError."""


@dataclass(frozen=True)
class Derived:
    """What a role is made of."""

    role: str
    columns: tuple[int, ...]
    """Numbers of the columns that are read for it."""
    make: Make


# ---------------------------------------------------------------- constants


def constants(file: DataFile) -> dict[str, str | int | float]:
    """Return what `set` gives each row of a file, by role. Raises UserError for a name in braces that is none."""
    return {
        role: _of_file(value, file, setting=f"{file.setting}.set.{role}") if isinstance(value, str) else value
        for role, value in file.source.set.items()
    }


def constant(role: str, value: str | int | float) -> Derived:
    """Return a role that has one value in every row."""
    return Derived(role, (), lambda cells, where: value)


def _of_file(template: str, file: DataFile, *, setting: str) -> str:
    parts = parse_template(template, setting=setting)
    for name in (text for text, is_name in parts if is_name):
        if name not in PLACES:
            meant = nearest(name, PLACES)
            fix = f"did you mean {{{meant}}}?" if meant else "write one of them, or {{ and }} for braces."
            raise UserError(f"{setting} = {template!r}: {{{name}}} must be {{folder}} or {{file}}; {fix}")
        if file.format in NO_FILE:
            raise UserError(
                f"{setting} = {template!r}: rows of format {file.format} stand in no file whose name {{{name}}} could "
                "be; write the value itself."
            )
    return filled(parts, lambda name: _name_of(file, name)) if is_template(template) else template


def _name_of(file: DataFile, name: str) -> str:
    """The name of a file's folder, or its own without the suffix (`a` of `a.csv.gz`)."""
    path = urlsplit(file.path).path if is_url(file.path) else os.path.abspath(file.path)
    if name == "folder":
        return os.path.basename(os.path.dirname(path))
    return os.path.splitext(without_packing(os.path.basename(path)))[0]


# ---------------------------------------------------------------- made of columns


def derived(
    file: DataFile, available: Columns, key: str | tuple[str, ...], role: str, *, where: str, may_lack: bool
) -> Derived | None:
    """Return how a role is made by a key of `columns` that is no column's name; None where a column is not there.

    A list is of columns of 0 and 1, or of texts, a text with braces a template, one with dots a path into a column.
    may_lack: the role may be lacking in a row. Raises UserError, where it may not, for a column of a list or a template
    that is not there; a key that is no path is left to the caller.
    """
    setting = f"{file.setting}.columns.{role}"
    parts = parse_template(key, setting=setting) if isinstance(key, str) and is_template(key) else []
    names = key if isinstance(key, tuple) else tuple(name for name, is_name in parts if is_name) if parts else (key,)
    cells = {}
    for name in dict.fromkeys(names):
        cell = _cell(file, available, name, setting=setting, where=where, may_lack=may_lack)
        if cell is not None:
            cells[name] = cell
        elif may_lack or name == key:
            return None
        else:
            raise _no_column(available, name, setting=f"{setting} = {_written(key)}", where=where)

    def make(values: Sequence[Any], where: str) -> Any:
        found = {name: cells[name].read(value, where) for name, value in zip(cells, values, strict=True)}
        if isinstance(key, tuple) and role in PLACED:
            return list(found.values())
        if isinstance(key, tuple):
            return _texts(found) if role in REFERENCES else _classes(found, role, setting=setting, where=where)
        return _text(parts, found, setting=setting, where=where) if parts else found[key]

    return Derived(role, tuple(cell.column for cell in cells.values()), make)


@dataclass(frozen=True)
class _Cell:
    """A column of a file, or what stands at a path inside each of its values."""

    column: int
    name: str
    path: str
    """Inside the column's values; "" = the whole value."""
    setting: str
    missing_values: tuple[str, ...]
    may_lack: bool
    """A key or item that is not there is a missing value, and otherwise an error."""

    def read(self, value: Any, where: str) -> Any:
        """Return what stands there, None where it is missing. Raises UserError, with the row's place."""
        try:
            found = value_at(value, self.path, inside=self.name) if self.path else value
        except LookupError as error:
            if self.may_lack:
                return None
            raise UserError(
                f"{where}: {self.setting}: the row {error.args[0]}; set drop: [missing] of its source to leave such "
                f"rows out, or {error.args[1]}"
            ) from error
        return with_none(found, missing_values=self.missing_values)


def _cell(file: DataFile, available: Columns, name: str, *, setting: str, where: str, may_lack: bool) -> _Cell | None:
    """Where a name leads: to a column of the name, or else of its first parts and on inside it; None = nowhere."""
    parts = name.split(".")
    for number in range(len(parts), 0, -1):
        key: str | int = ".".join(parts[:number])
        if available and isinstance(available[0], int) and NUMBER.fullmatch(str(key)):
            key = int(key)
        column = column_number(file, available, key, setting=setting, where=where)
        if column is not None:
            is_lenient = may_lack or not LEFT_OUT.isdisjoint(file.source.drop)
            written = f"{setting} = {name!r}"
            return _Cell(column, str(key), ".".join(parts[number:]), written, file.source.missing_values, is_lenient)
    return None


def _text(parts: list[Part], found: dict[str, Any], *, setting: str, where: str) -> str | None:
    """A template with its values; None where one of them is missing. Raises UserError for one that is no text."""
    for name, value in found.items():
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UserError(
                f"{where}: {name} = {short(value)} must be a text or a number to stand in {setting}; mend the row."
            )
    return filled(parts, lambda name: str(found[name]))


def _texts(found: dict[str, Any]) -> list[Any] | None:
    """The values that are not missing; None where all are."""
    return [value for value in found.values() if value is not None and value != ""] or None


def _classes(found: dict[str, Any], role: str, *, setting: str, where: str) -> list[str]:
    """The names whose values are 1. Raises UserError for a value that is neither 0 nor 1 nor missing."""
    chosen = []
    for name, value in found.items():
        written = "" if value is None else str(value).strip().lower()
        if written and written not in BITS:
            raise UserError(
                f"{where}: {name} = {short(value)} must be 0 or 1, since {setting} is a list of columns of 0 and 1; "
                f'mend the row, or write a template, {role}: "{{{name}}} ...", to join texts.'
            )
        if written and BITS[written]:
            chosen.append(name)
    return chosen


def _no_column(available: Columns, name: str, *, setting: str, where: str) -> UserError:
    meant = nearest_column(available, name)
    fix = f"did you mean {meant!r}?" if meant else "write one of these."
    return UserError(f"{setting}: {name!r} is not a column of {where}, which has {shown_columns(available)}; {fix}")


def _written(key: str | tuple[str, ...]) -> str:
    return repr(list(key)) if isinstance(key, tuple) else repr(key)
