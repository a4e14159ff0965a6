"""A file that the run has not seen, read as its training data was where it is of the same kind."""

from __future__ import annotations

from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.schema import SourceConfig
from ftscale.data.formats.template import is_template
from ftscale.data.sources import detect_format

NAMED_COLUMNS = ("csv", "tsv", "jsonl", "json", "parquet", "excel", "hub")
"""Formats whose columns have names, so that names learned from one mean the same in another."""

OF_ONE_SOURCE = ("name", "split", "rows", "sheet")
"""Settings of a source that say which part of it is read, and so mean nothing for another one."""


def source_like(
    like: SourceConfig, path: str, config: Config, *, form: str = "auto", setting: str = "input"
) -> SourceConfig:
    """A path as a source of the run: with the settings of another where it is of the same kind, else its columns.

    In a run of documents a file that may be a text is one, whatever its name.
    """
    form = "document" if form == "auto" and like.format == "document" and _may_be_text(path) else form
    given = SourceConfig(path=path, format=form)
    own_roles = {role for alternative in config.task.columns for role in alternative}
    columns = {role: name for role, name in like.columns.items() if role in own_roles}
    fixed = _fixed(like, config)
    named_alike = form == "auto" and Path(path).is_file() and _suffix(path) == _suffix(like.path)
    kind, like_kind = kind_of(given, setting=setting), _trained_kind(like)
    if named_alike or kind == like_kind:  # by name alone, since a table may be called .txt
        settings = {**like.model_dump(exclude_unset=True), "path": path, "limit": 0, "columns": columns, "set": fixed}
        return SourceConfig(**{name: value for name, value in settings.items() if name not in OF_ONE_SOURCE})
    if kind in NAMED_COLUMNS and like_kind in NAMED_COLUMNS:
        columns = {role: name for role, name in columns.items() if not isinstance(name, int)}
        return SourceConfig(path=path, columns=columns, set=fixed, missing_values=like.missing_values)
    return SourceConfig(path=path, set=fixed)


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
        if role not in own_labels or (isinstance(value, str) and is_template(value))
    }


def _trained_kind(source: SourceConfig) -> str | None:
    try:
        return kind_of(source)
    except UserError:  # the training data need not be here any more
        return None


def _suffix(path: str) -> str:
    return "".join(Path(path).suffixes[-2:])


def kind_of(source: SourceConfig, *, setting: str = "input") -> str:
    """The format of a source, found out where it is not named. Raises UserError where that cannot be."""
    return source.format if source.format != "auto" else detect_format(source.path, setting=setting)
