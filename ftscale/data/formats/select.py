"""Which columns of a file stand for which of the task's roles."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats.base import DataFile
from ftscale.data.formats.columns import Columns, column_number, nearest_column, shown_columns
from ftscale.data.formats.derived import Derived, constant, constants, derived

CONLL_DEFAULTS: Mapping[str, str | int] = {"words": 0, "tags": -1}

NO_LABEL = {
    "idx": "put the labels file (images-idx3 in its name replaced by labels-idx1) beside the images.",
    "image_folder": "put each image into a folder that has the name of its class.",
}
"""The fix where a format has labels in another place than a column."""

Key = str | int | tuple[str, ...]
"""What `columns` says of a role: a column's name or number, a path, a template, or a list of columns of 0 and 1."""


class Selection(NamedTuple):
    """What of a file's columns the task is given."""

    roles: tuple[str, ...]
    columns: tuple[int, ...]
    """The number of the column for each of the roles."""
    derived: tuple[Derived, ...]
    """Other roles, which are made of columns."""

    @property
    def all_roles(self) -> tuple[str, ...]:
        """The names of everything that a row is given."""
        return (*self.roles, *(item.role for item in self.derived))


def select(
    file: DataFile,
    available: Columns,
    *,
    roles: Sequence[Sequence[str]],
    absent: Collection[str],
    where: str | None = None,
) -> Selection:
    """Columns for the first alternative of `roles` that is there whole, and those that the source maps or sets besides.

    Of several that are there, one that uses what `columns` maps goes first. `absent`: roles that may be lacking.
    `where` is a row that has columns of its own; None = all rows of the file have these. Raises UserError for a mapped
    column that is not there, and where no alternative is there whole.
    """
    where_text = where or file.path
    mapping, fixed = _mapping(file, available), constants(file)
    named = [role for alternative in roles for role in alternative]
    found: dict[str, int | Derived] = {role: constant(role, value) for role, value in fixed.items()}
    for role in dict.fromkeys((*named, *mapping)):
        if role in fixed:
            continue
        column = _source_of(file, available, mapping.get(role, role), role, where_text, may_lack=role in absent)
        if column is not None:
            found[role] = column
        elif role in mapping and role not in absent:
            raise _no_mapped_column(file, available, role, where_text)

    def missing(alternative: Sequence[str]) -> list[str]:
        return [role for role in alternative if role not in found and role not in absent]

    whole = [alternative for alternative in roles if not missing(alternative)]
    if not whole:
        nearest = min(roles, key=lambda alternative: (len(missing(alternative)), -len(alternative)))
        free = tuple(name for number, name in enumerate(available) if number not in found.values())
        raise _no_columns(file, available, free, missing(nearest), roles, where_text)
    own = {**mapping, **fixed}
    chosen = max(whole, key=lambda alternative: sum(role in own for role in alternative))
    kept = {role: found[role] for role in dict.fromkeys((*chosen, *own)) if role in found}
    plain = {role: column for role, column in kept.items() if isinstance(column, int)}
    made = tuple(item for item in kept.values() if isinstance(item, Derived))
    return Selection(tuple(plain), tuple(plain.values()), made)


def role_problems(
    source: SourceConfig, *, roles: Sequence[Sequence[str]], setting: str, also: Sequence[str] = ()
) -> list[str]:
    """What is wrong with the names on the left side of a source's `columns` and `set`: those the task never reads.

    And with `drop: [unreadable]`, where it reads no images.
    roles: the task's alternatives; `also`: columns that something else reads, as `data.stratify` does.
    """
    known = list(dict.fromkeys(role for alternative in roles for role in alternative))
    given = [("columns", role) for role in source.columns] + [("set", role) for role in source.set]
    names = list(dict.fromkeys(role for _, role in given))
    unknown = [role for role in names if role not in known and role not in also]
    free = [role for role in known if role not in names]
    problems = [
        f"{setting}.{section}.{role} is no column of the task, which reads {', '.join(known)}; {_meant(role, free)}"
        for section, role in given
        if role in unknown
    ]
    problems += [
        f"{setting}.set.{role} and {setting}.columns.{role} both say what {role} is; leave one of them out."
        for role in source.set
        if role in source.columns
    ]
    mapped = [role for role in names if role in known]
    if not unknown and mapped and not any(set(mapped) <= set(alternative) for alternative in roles):
        section = "columns" if source.columns else "set"
        problems.append(
            f"{setting}.{section} maps {', '.join(mapped)}, which the task never reads together (it reads "
            f"{_alternatives(roles)}); leave out what it shall not read."
        )
    if "unreadable" in source.drop and "image" not in known:
        problems.append(
            f"{setting}.drop = unreadable is for images, of which the task reads none (it reads {', '.join(known)}); "
            "leave it out."
        )
    return problems


def _meant(role: str, free: Sequence[str]) -> str:
    close = get_close_matches(role, free, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "write one of them, or leave it out."


def _alternatives(roles: Sequence[Sequence[str]]) -> str:
    return " or ".join(" + ".join(alternative) for alternative in roles)


def _mapping(file: DataFile, available: Columns) -> Mapping[str, Key]:
    if file.format != "conll":
        return file.source.columns
    defaults = CONLL_DEFAULTS if len(available) > 1 else {"words": 0}
    return {**defaults, **file.source.columns}


def _source_of(
    file: DataFile, available: Columns, key: Key, role: str, where: str, *, may_lack: bool
) -> int | Derived | None:
    """The column that has the key for its name or number, which goes first, or what the key is a form of."""
    if not isinstance(key, tuple):
        column = column_number(file, available, key, setting=f"{file.setting}.columns.{role}", where=where)
        if column is not None or isinstance(key, int) or key == role:
            return column
    return derived(file, available, key, role, where=where, may_lack=may_lack)


def _no_mapped_column(file: DataFile, available: Columns, role: str, where: str) -> UserError:
    key = file.source.columns[role]
    nearest, (first, dot, rest) = nearest_column(available, str(key)), str(key).partition(".")
    if dot and "." not in (nearest or "") and (outer := nearest_column(available, first)):  # the key is a path
        nearest = f"{outer}.{rest}"
    fix = f"did you mean {nearest!r}?" if nearest else "set it to one of these."
    return UserError(
        f"{file.setting}.columns.{role} = {key!r} is not a column of {where}, which has {shown_columns(available)}; "
        f"{fix}"
    )


def _no_columns(
    file: DataFile,
    available: Columns,
    free: Columns,
    missing: list[str],
    roles: Sequence[Sequence[str]],
    where: str,
) -> UserError:
    example = ", ".join(f"{role}: {_suggestion(free, role, place)}" for place, role in enumerate(missing))
    fix = f"set {file.setting}.columns={{{example}}}."
    if missing == ["label"] and file.format in NO_LABEL:
        fix = NO_LABEL[file.format]
    elif len(available) == 1 and any(mark in str(available[0]) for mark in ",;|\t"):
        fix = f"set {file.setting}.separator if these are several columns."
    needs = _alternatives(roles)
    return UserError(
        f"{file.setting}.columns: {where} has no column for {', '.join(map(repr, missing))} (the task needs {needs}); "
        f"it has {shown_columns(available)}; {fix}"
    )


def _suggestion(free: Columns, role: str, place: int) -> str:
    """The likeliest of the columns that no role has yet."""
    if free and isinstance(free[0], int):
        return str(free[min(place, len(free) - 1)])
    return nearest_column(free, role) or "ITS_NAME"
