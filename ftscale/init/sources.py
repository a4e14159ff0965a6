"""The sources of a run, by the parts of a data set, or with a share that is held out."""

from __future__ import annotations

import os
from typing import Any

from ftscale.base.errors import UserError, counted
from ftscale.config.tasks import SETTINGS
from ftscale.init.columns import Rows
from ftscale.init.doubts import Option
from ftscale.init.draft import Draft
from ftscale.init.heads import columns_of
from ftscale.init.lengths import READ, repeated, texts_of
from ftscale.init.look import SETTING, Look
from ftscale.init.parts import Parts, without_path

MANY = 0.1
"""Share of rows with the input of another from which on it is told."""
FEW_ROWS = 50
"""Rows below which nobody can say what was learned."""
MANY_CLASSES = 20
"""From which on a twentieth of the rows is too few of each."""


def put_sources(draft: Draft, found: Look, rows: Rows, parts: Parts, total: int | None) -> None:
    """Set the sources: the parts that are there, else a share that is held out."""
    seen = {**found.source, **({"columns": rows.columns} if rows.columns else {})}
    why = ", ".join(dict.fromkeys(found.why)) or found.form
    draft.put("data.train", _as_setting([{**source, **seen} for source in parts.train]), why)
    for part, sources in parts.others.items():
        full = [{**seen, **source} for source in sources]
        usable = [_in_order(source) for source in full if _has_columns(source, rows, found)]
        if usable:
            draft.put(f"data.{part}", _as_setting(usable), f"by {'their names' if len(usable) > 1 else 'its name'}")
    if draft.value("data.eval") is not None:
        return
    count = total or found.rows
    share = 0.2 if count < 500 else 0.1 if count < 10_000 or _classes(rows) > MANY_CLASSES else 0.05
    share = _asked_share(found, share)
    if not share:
        return
    draft.put("data.eval_ratio", share, f"of {how_many(found, total)} held out, since there is no file for it")
    if rows.label is not None and rows.label.is_class and min(rows.label.counts.values()) > 1:
        draft.put("data.stratify", "label", "keeps the shares of the classes in both parts")
    again = repeated(texts_of(found, rows.columns, READ)) if rows.task != "image_classification" else 0.0
    if again > MANY and not draft.value("task.join_texts"):
        found.doubts.note(
            f"{again:.0%} of the rows have an input that another row has too, so that held-out rows are not all new to "
            "the model; a file of its own under data.eval is better."
        )
    if count < FEW_ROWS:
        found.doubts.note(f"{counted(count, 'row')} are few to learn from, and to score by.")


def _asked_share(found: Look, share: float) -> float:
    shares = sorted({0.05, 0.1, 0.2, share})
    answer = found.doubts.settle(
        f"No rows for evaluation lie beside {found.path}; which share of it is to be held out?",
        options=[Option(f"{value:g}", f"{round(value * found.rows)} of {found.rows} rows") for value in shares],
        default=f"{share:g}",
        note=None,
    )
    return float(answer)


def _classes(rows: Rows) -> int:
    return len(rows.label.counts) if rows.label is not None and rows.label.is_class else 0


def _as_setting(sources: list[dict[str, Any]]) -> Any:
    ordered = [_in_order(source) for source in sources]
    shorter = [source["path"] if len(source) == 1 else source for source in ordered]
    return shorter[0] if len(shorter) == 1 else shorter


def _in_order(source: dict[str, Any]) -> dict[str, Any]:
    return {"path": source["path"], **without_path(source)}


def _has_columns(source: dict[str, Any], rows: Rows, found: Look) -> bool:
    """Whether another part has the columns that are read of the training rows; what has not is told."""
    if found.form in ("hub", "conll", "parallel", "idx", "image_folder", "document"):
        return True
    name = f"{os.path.basename(source['path'])}{' split ' + source['split'] if 'split' in source else ''}"
    try:
        there = columns_of({key: value for key, value in source.items() if key != "columns"}, setting=SETTING)
    except UserError as error:
        found.doubts.note(f"{name} is left out: {error.problems[0]}")
        return False
    if there is None:
        return True
    wanted = [column.name for column in found.columns if _is_read(column.name, rows)]
    lacking = [
        column for column in wanted if column not in there and not (isinstance(column, int) and column < len(there))
    ]
    if lacking:
        found.doubts.note(f"{name} is left out, since it has no column {lacking[0]}; ftscale predict may read it.")
    return not lacking


def _is_read(column: str | int, rows: Rows) -> bool:
    named = [value for value in rows.columns.values() if isinstance(value, (str, int))]
    roles = {role for alternative in SETTINGS[rows.task].columns for role in alternative}
    optional = SETTINGS[rows.task].optional_columns
    return column in named or (column in roles and column not in rows.columns and column not in optional)


def how_many(found: Look, total: int | None) -> str:
    """Say how many rows there are. `total`: where they are known without a look at all."""
    if total is not None:
        return counted(total, "row")
    return f"{'' if found.is_whole else 'more than '}{counted(found.rows, 'row')}"
