"""Values of a row as the tasks need them, with errors that name the row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config.tasks.base import TaskSettings
from ftscale.data.census import content_of
from ftscale.data.missing import is_missing
from ftscale.data.sample import Sample
from ftscale.tasks.base import Row, Task
from ftscale.tasks.written_lists import parse_list

TEXTS = (
    "text",
    "text_pair",
    "source",
    "words",
    "question",
    "context",
)  # columns in which white space alone says nothing
SHOWN_CHARACTERS = 1000
PANIC = "PanicException"  # of Rust's code in Python: it can be imported from nowhere, and is no Exception
LEAVE_OUT = "set drop: [missing] of its source to leave such rows out"


def where(row: Row) -> str:
    """The file and line of a row, as its reader noted them."""
    return str(row.get("_where", "a row"))


def text_of(row: Row, column: str) -> str:
    """A column as a string; a number is written out. Raises UserError where there is none."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not is_missing(value):
        return str(value)
    raise UserError(f"{where(row)}: {column} = {value!r} must be a text; {mend(value)}.")


def texts_of(row: Row, column: str) -> list[str]:
    """A column that may have several texts, as a list: those that are neither missing nor blank, but one at least.

    Raises UserError where there is none.
    """
    value = row.get(column)
    if not isinstance(value, (list, tuple)):
        return [text_of(row, column)]
    texts = [text_of({**row, column: item}, column) for item in value if not is_missing(item)]
    if not texts:
        return [text_of({**row, column: None}, column)]
    return [text for text in texts if text.strip()] or texts[:1]


def number_of(row: Row, column: str) -> float:
    """A column as a finite number. Raises UserError where it is none."""
    value = row.get(column)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where(row)}: {column} = {value!r} must be a number; {mend(value)}.")
    return number


def words_of(row: Row, column: str) -> list[str]:
    """A column as a list of strings, or as a text of one that Python wrote. Raises UserError where it is none."""
    value: Any = row.get(column)
    if isinstance(value, str):
        value = parse_list(value)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise UserError(
            f"{where(row)}: {column} = {_shown(row.get(column))} must be a list of strings, one a word; mend the row."
        )
    return list(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def mend(value: Any) -> str:
    """The fix for a value that a task cannot use."""
    left_out = f", {LEAVE_OUT}," if is_missing(value) or value == "" else ","
    return f"mend the row{left_out} or name another column"


def prepare_rows(task: Task, rows: Sequence[Row], *, labelled: bool = True, groups: Sequence[str] = ()) -> list[Sample]:
    """`task.prepare`, with a sample that says why alone for each row that its source leaves out.

    Every sample says where its rows were read, what they have in the columns `groups` and, where it is of one, what is
    counted of it.
    """
    noted = [_groups(row, groups) for row in rows]
    rows = [_without(row, groups, task.settings) for row in rows] if groups else rows
    reasons = [left_out(task.settings, row, labelled=labelled) for row in rows]
    numbers = [number for number, reason in enumerate(reasons) if not reason]
    kept = [rows[number] for number in numbers]
    samples = _prepare(task, kept, labelled=labelled) if kept else []
    if not task.by_row:
        if samples and all(sample.rows is None for sample in samples):  # as of rows to predict on: one of each
            for number, (sample, _) in enumerate(zip(samples, kept, strict=True)):
                sample.rows = (number, number + 1)
        aside = [Sample(cost=0, drop=reason, rows=(at, at + 1)) for at, reason in enumerate(reasons) if reason]
        for sample in samples:
            assert sample.rows is not None, "samples that are not one a row say of which rows they are"
            first, stop = numbers[sample.rows[0]], numbers[sample.rows[1] - 1] + 1
            sample.rows, sample.where = (first, stop), _span(rows[first:stop])
            sample.groups = _common(noted[first:stop])
        return [*aside, *samples]
    inputs = task.settings.input_columns
    for sample, row, number in zip(samples, kept, numbers, strict=True):
        sample.where, sample.groups = where(row), noted[number]
        if not sample.drop:
            sample.facts |= {"blank": is_blank(row), "hashes": content_of(row, inputs=inputs)}
    ready, others = iter(samples), iter(Sample(cost=0, drop=reason) for reason in reasons if reason)
    return [next(others if reason else ready) for reason in reasons]


def _groups(row: Row, names: Sequence[str]) -> dict[str, str]:
    """What a row has in these columns, "" where that is nothing."""
    return {name: "" if is_missing(row.get(name)) else str(row[name]) for name in names}


def _common(groups: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all rows have."""
    found = {name: {of_row[name] for of_row in groups} for name in groups[0]}
    return {name: values.pop() if len(values) == 1 else "several" for name, values in found.items()}


def _without(row: Row, names: Sequence[str], settings: TaskSettings) -> Row:
    """The row as it is without the columns that the task does not read."""
    own = {role for alternative in settings.roles for role in alternative}
    return {name: value for name, value in row.items() if name in own or name not in names}


def _span(rows: Sequence[Row]) -> str:
    return where(rows[0]) if len(rows) == 1 else f"{where(rows[0])} to {where(rows[-1])}"


def _prepare(task: Task, rows: Sequence[Row], *, labelled: bool) -> list[Sample]:
    """`task.prepare`. Raises UserError where the tokenizer's own code gives up."""
    try:
        return task.prepare(rows, labelled=labelled)
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise UserError(
            f"model.processor: the tokenizer gives up on a row of {where(rows[0])} to {where(rows[-1])} ({error}): a "
            "regular expression of its tokenizer.json may try too many ways; set model.processor to another one."
        ) from error


def left_out(settings: TaskSettings, row: Row, *, labelled: bool = True) -> str:
    """Why a row is left out by its source: unlabelled, missing or blank; "" where it is used."""
    drop = row.get("_drop", ())
    if "unlabelled" in drop and any(
        _lacks(settings, row, role)
        for role in _needed(settings, row, labelled=labelled)
        if role in settings.label_columns
    ):
        return "unlabelled"
    if "missing" in drop and any(_lacks(settings, row, role) for role in _needed(settings, row, labelled=labelled)):
        return "missing"
    return "blank" if "blank" in drop and is_blank(row) else ""


def is_blank(row: Row) -> bool:
    """Whether a text that the model reads is of white space alone, or a list of words has none."""
    return any(_says_nothing(row[role]) for role in TEXTS if role in row)


def _needed(settings: TaskSettings, row: Row, *, labelled: bool) -> list[str]:
    known = {role for alternative in settings.roles for role in alternative} - settings.may_be_empty
    return [role for role in row if role in known and (labelled or role not in settings.label_columns)]


def _lacks(settings: TaskSettings, row: Row, role: str) -> bool:
    value = row[role]
    if isinstance(value, (list, tuple)) and "tags_words" in settings.can:
        return any(is_missing(item) for item in value)
    is_label = role in settings.label_columns
    if is_label and isinstance(value, (list, tuple)) and "writes_text" in settings.can:  # references
        return all(is_missing(item) for item in value)
    return is_missing(value) or (is_label and isinstance(value, str) and not value.strip())


def _says_nothing(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return not any(isinstance(item, str) and item.strip() for item in value)
    return isinstance(value, str) and not value.strip()
