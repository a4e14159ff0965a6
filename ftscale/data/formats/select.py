"""Which columns of a file stand for which of the task's roles."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from ftscale.base.errors import UserError, counted
from ftscale.data.formats.base import DataFile

CONLL_DEFAULTS: Mapping[str, str | int] = {"words": 0, "tags": -1}

NO_LABEL = {
    "idx": "put the labels file (images-idx3 in its name replaced by labels-idx1) beside the images.",
    "image_folder": "put each image into a folder that has the name of its class.",
}
"""The fix where a format has labels in another place than a column."""

Selection = tuple[tuple[str, ...], tuple[int, ...]]
"""Roles, and the number of the column for each."""


def select(
    file: DataFile,
    available: tuple[str | int, ...],
    *,
    roles: Sequence[Sequence[str]],
    absent: Collection[str],
    where: str | None = None,
) -> Selection:
    """Columns for the first alternative of `roles` that is there whole, and those that `columns` maps besides.

    Of several that are there, one that uses what `columns` maps goes first. `absent`: roles that may be lacking.
    `where` is a row that has columns of its own; None = all rows of the file have these. Raises UserError for a mapped
    column that is not there, and where no alternative is there whole.
    """
    where_text = where or file.path
    mapping = _mapping(file, available)
    named = [role for alternative in roles for role in alternative]
    found: dict[str, int] = {}
    for role in dict.fromkeys((*named, *mapping)):
        column = _column(file, available, mapping.get(role, role), role, where_text)
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
    chosen = max(whole, key=lambda alternative: sum(role in mapping for role in alternative))
    kept = [role for role in dict.fromkeys((*chosen, *mapping)) if role in found]
    return tuple(kept), tuple(found[role] for role in kept)


def role_problems(
    columns: Mapping[str, str | int], *, roles: Sequence[Sequence[str]], setting: str, also: Sequence[str] = ()
) -> list[str]:
    """What is wrong with the names on the left side of a source's `columns`: those the task never reads.

    roles: the task's alternatives; `also`: columns that something else reads, as `data.stratify` does.
    """
    known = list(dict.fromkeys(role for alternative in roles for role in alternative))
    unknown = [role for role in columns if role not in known and role not in also]
    free = [role for role in known if role not in columns]
    problems = [
        f"{setting}.columns.{role} is no column of the task, which reads {', '.join(known)}; {_meant(role, free)}"
        for role in unknown
    ]
    mapped = {role for role in columns if role in known}
    if not unknown and mapped and not any(mapped <= set(alternative) for alternative in roles):
        problems.append(
            f"{setting}.columns maps {', '.join(role for role in columns if role in known)}, which the task never "
            f"reads together (it reads {_alternatives(roles)}); leave out what it shall not read."
        )
    return problems


def _meant(role: str, free: Sequence[str]) -> str:
    close = get_close_matches(role, free, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "write one of them, or leave it out."


def _alternatives(roles: Sequence[Sequence[str]]) -> str:
    return " or ".join(" + ".join(alternative) for alternative in roles)


def _mapping(file: DataFile, available: tuple[str | int, ...]) -> Mapping[str, str | int]:
    if file.format != "conll":
        return file.source.columns
    defaults = CONLL_DEFAULTS if len(available) > 1 else {"words": 0}
    return {**defaults, **file.source.columns}


def _column(file: DataFile, available: tuple[str | int, ...], key: str | int, role: str, where: str) -> int | None:
    """The number of the column with a name or a number; None where no column has the name."""
    if isinstance(key, int):
        if file.format in ("jsonl", "json", "hub"):
            raise UserError(f"{file.setting}.columns.{role} = {key} must be a name: {where} has {_shown(available)}.")
        if not -len(available) <= key < len(available):
            raise UserError(
                f"{file.setting}.columns.{role} = {key} must be below {len(available)}, the number of columns of "
                f"{where}; columns count from 0."
            )
        return key % len(available)
    if available.count(key) > 1:
        raise UserError(
            f"{file.setting}.columns: {where} has {available.count(key)} columns called {key!r}; choose one by its "
            f"number from 0: {file.setting}.columns.{role}={available.index(key)}."
        )
    return available.index(key) if key in available else None


def _no_mapped_column(file: DataFile, available: tuple[str | int, ...], role: str, where: str) -> UserError:
    key = file.source.columns[role]
    nearest = _nearest(available, str(key))
    fix = f"did you mean {nearest!r}?" if nearest else "set it to one of these."
    return UserError(
        f"{file.setting}.columns.{role} = {key!r} is not a column of {where}, which has {_shown(available)}; {fix}"
    )


def _no_columns(
    file: DataFile,
    available: tuple[str | int, ...],
    free: tuple[str | int, ...],
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
        f"it has {_shown(available)}; {fix}"
    )


def _suggestion(free: tuple[str | int, ...], role: str, place: int) -> str:
    """The likeliest of the columns that no role has yet."""
    if free and isinstance(free[0], int):
        return str(free[min(place, len(free) - 1)])
    return _nearest(free, role) or "ITS_NAME"


def _nearest(available: tuple[str | int, ...], name: str) -> str | None:
    names = [column for column in available if isinstance(column, str)]
    close = get_close_matches(name, names, n=1, cutoff=0.4)
    return close[0] if close else None


def _shown(available: tuple[str | int, ...]) -> str:
    if available and all(isinstance(column, int) for column in available):
        return f"{counted(len(available), 'column')} without names"
    return f"the columns {', '.join(map(repr, available))}" if available else "no columns"
