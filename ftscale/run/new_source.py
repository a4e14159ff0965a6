"""A file that the run has not seen, read as its own data were where it is of the same kind."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import load_format
from ftscale.data.formats.discover import discover, format_of_name
from ftscale.data.formats.splits import names_split
from ftscale.data.formats.template import is_template
from ftscale.data.sources import detect_format

NAMED_COLUMNS = ("csv", "tsv", "jsonl", "json", "parquet", "excel", "hub")
"""Formats whose columns have names, so that names learned from one mean the same in another. Whether a table has a
header is known of the trained format alone: without one a header would be a row, in silence."""

OF_ONE_SOURCE = ("path", "split", "limit", "weight")
"""Settings of a source that say which rows are read, and how often, and so mean nothing for another one."""
PLACES = ("name", "rows", "sheet")
"""Those that name a place in it, which another one may have too."""
OF_A_FORMAT = ("format", "pattern", "header", "separator", "comment", "encoding")
"""Those by which a file is read, taken over for one of the same kind."""
OF_ROWS = ("columns", "set", "missing_values", "drop")
"""Those that say what rows mean, in whatever format they come."""


def source_like(
    known: Sequence[SourceConfig], path: str, config: Config, *, form: str = "auto", setting: str = "input"
) -> SourceConfig:
    """A path as a source of the run, with the settings of one that the run knows, as far as they fit.

    `known`: the first of them that is of the same kind counts, else the first of all. `form`: the path's format, where
    the user says it; in a run of documents a file that may be a text is one, whatever its name. Raises UserError where
    the format cannot be found out.
    """
    documents = any(source.format == "document" for source in known)
    form = "document" if form == "auto" and documents and _may_be_text(path) else form
    given = SourceConfig(path=path, format=form)
    kind = kind_of(given, setting=setting)
    like = next((source for source in known if _is_alike(source, given, kind)), known[0])
    settings = _set_of(like, OF_ROWS)
    settings |= {"path": path, "set": _fixed(like, config), "columns": _columns(like, config)}
    settings |= {} if form == "auto" else {"format": form}
    if _is_alike(like, given, kind):
        settings |= _set_of(like, OF_A_FORMAT)
        for name, value in _set_of(like, PLACES).items():
            if _has_place(SourceConfig(**settings, **{name: value}), name, like, setting=setting):
                settings[name] = value
        return SourceConfig(**settings)
    if kind in NAMED_COLUMNS and _known_kind(like) in NAMED_COLUMNS:
        settings["columns"] = {role: name for role, name in settings["columns"].items() if not isinstance(name, int)}
    else:
        del settings["columns"]
    return SourceConfig(**settings)


def _is_alike(like: SourceConfig, given: SourceConfig, kind: str) -> bool:
    """Whether a source is of the same kind as one of the run, by its name alone too: a table may be called .txt."""
    here = Path(given.path).is_file() or glob.has_magic(given.path)
    alike_by_name = given.format == "auto" and here and _suffix(given.path) == _suffix(like.path)
    return alike_by_name or kind == _known_kind(like)


def _set_of(like: SourceConfig, names: Sequence[str]) -> dict[str, Any]:
    """Those of the settings that are not as they are for any source."""
    return {name: value for name, value in like.model_dump(exclude_defaults=True).items() if name in names}


def _columns(like: SourceConfig, config: Config) -> dict[str, Any]:
    return {role: name for role, name in like.columns.items() if role in _own_roles(config)}


def _may_be_text(path: str) -> bool:
    """Whether a file or folder is one of texts by its name, or of nothing that is known by it."""
    try:
        return detect_format(path, setting="input") == "text"
    except UserError:
        return True


def _fixed(like: SourceConfig, config: Config) -> dict[str, str | int | float]:
    """What `set` says of any file: inputs, and labels that are names of files; one file's label is not another's."""
    own_labels = config.task.label_columns
    return {
        role: value
        for role, value in like.set.items()
        if role in _own_roles(config) and (role not in own_labels or (isinstance(value, str) and is_template(value)))
    }


def _own_roles(config: Config) -> set[str]:
    """The columns that the task reads: no others need be in another file, such as those of `evaluation.groups`."""
    return {role for alternative in config.task.columns for role in alternative}


def _has_place(source: SourceConfig, name: str, like: SourceConfig, *, setting: str) -> bool:
    """Whether a source has the place that one of its settings names; another part of the data is no such place."""
    if name == "name":  # a configuration of that data set
        return source.path == like.path
    if any(names_split(part) for part in str(getattr(source, name)).lower().split(".")):
        return False
    try:
        file = discover(source, setting=setting)[0]
        next(load_format(file.format).records(file, place=None, wanted=()), None)
    except UserError:  # what is wrong besides is told when its rows are read
        return False
    return True


def _known_kind(source: SourceConfig) -> str | None:
    try:
        return kind_of(source)
    except UserError:  # the training data need not be here any more
        return format_of_name(source.path)


def _suffix(path: str) -> str:
    return "".join(Path(path).suffixes[-2:])


def kind_of(source: SourceConfig, *, setting: str = "input") -> str:
    """The format of a source, found out where it is not named. Raises UserError where that cannot be."""
    return source.format if source.format != "auto" else detect_format(source.path, setting=setting)
