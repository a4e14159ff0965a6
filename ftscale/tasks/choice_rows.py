"""The choices of a row and the right one of them, in the forms that data sets give them."""

from __future__ import annotations

import string
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ftscale.base.errors import UserError
from ftscale.data.missing import is_missing
from ftscale.data.values import short
from ftscale.tasks.base import Row
from ftscale.tasks.rows import mend, where
from ftscale.tasks.written_lists import parse_written

LabelForm = Literal["name", "text", "number_from_0", "number_from_1"]
"""How a label says which choice is right, as `task.label_form`."""
FIRST = {"number_from_0": 0, "number_from_1": 1}
"""The number of the first choice."""
LETTERS = string.ascii_uppercase
AROUND = "().: "
"""What stands around a letter: `(A)`, `A.`."""


@dataclass(frozen=True)
class Choices:
    """Those of a row that have a text."""

    texts: list[str]
    names: list[str]
    """What the file calls them, or else A, B, C, ..."""
    places: list[int]
    """Each one's number from 0, counted with those that have no text, as empty cells of a table."""
    asked: int
    """How many there are, counted so."""


def choices_of(row: Row) -> Choices:
    """The choices of a row. Raises UserError for a form that is not known, and for fewer than two with a text.

    `choices`: a list of texts; of `{"label": ..., "text": ...}` (CommonsenseQA's own files); `{"text": [...], "label":
    [...]}` (`datasets`); an object of names to texts; or one of these as JSON or Python writes it.
    """
    value = row.get("choices")
    names, values = _named(row, parse_written(value) if isinstance(value, str) else value)
    if len(names) != len(values):
        raise UserError(f"{where(row)}: choices has {len(values)} texts and {len(names)} labels; mend the row.")
    texts = [_text(row, item) for item in values]
    places = [place for place, text in enumerate(texts) if text]
    if len(places) < 2:
        raise UserError(
            f"{where(row)}: choices = {short(value)} has {len(places)} with a text and must have two or more; "
            f"{mend(value)}."
        )
    return Choices([texts[place] for place in places], [names[place] for place in places], places, len(texts))


def place_of(row: Row, choices: Choices, form: LabelForm) -> int | None:
    """The place in `choices` of the right one; None where the label names none so.

    A label of zeros and a single one names the place of the one, whatever the form. Raises UserError where there is no
    label.
    """
    label: Any = row.get("label")
    if isinstance(label, (list, tuple)) and len(label) == 1:
        label = label[0]
    if is_missing(label) or (isinstance(label, str) and not label.strip()):
        raise UserError(f"{where(row)}: label = {label!r} must say which choice is right; {mend(label)}.")
    if isinstance(label, (list, tuple)):
        is_vector = len(label) == choices.asked and sorted(map(str, label)) == ["0"] * (len(label) - 1) + ["1"]
        return _found(choices.places, list(map(str, label)).index("1")) if is_vector else None
    if form == "name":
        return _found(list(map(_bare, choices.names)), _bare(_written(label)))
    if form == "text":
        return _found([" ".join(text.split()) for text in choices.texts], " ".join(_written(label).split()))
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(label, bool) and float(label).is_integer():
            return _found(choices.places, int(float(label)) - FIRST[form])
    return None


def label_form_of(rows: Iterable[Row]) -> LabelForm:
    """The first form by which the labels of all rows name one of their choices.

    Raises UserError for a row that no form fits which the rows before it do, and where numbers may count from 0 or 1.
    """
    left: list[LabelForm] = list(get_args(LabelForm))
    for row in rows:
        choices = choices_of(row)
        fitting = [form for form in left if place_of(row, choices, form) is not None]
        if not fitting:
            raise no_choice(row, choices, f"{' or '.join(left)}, as in the rows before it")
        left = fitting
    if left[0] in FIRST and len(left) > 1:
        raise UserError(
            "data.train: label has numbers of choices that may count from 0 or from 1, for no row has the first or the "
            "last one; set task.label_form: number_from_0 or number_from_1."
        )
    return left[0]


def no_choice(row: Row, choices: Choices, form: str) -> UserError:
    """The error for a label that names none of the choices by a form."""
    return UserError(
        f"{where(row)}: label = {short(row.get('label'))} is none of the {len(choices.texts)} choices "
        f"({short(choices.texts)}) by {form}; mend the row, or set task.label_form."
    )


def _named(row: Row, value: Any) -> tuple[list[str], list[Any]]:
    """Names and texts as they stand there."""
    if isinstance(value, dict) and isinstance(value.get("text"), (list, tuple)):
        texts = list(value["text"])
        names = value.get("label")
        return (list(map(_written, names)) if isinstance(names, (list, tuple)) else _letters(len(texts))), texts
    if isinstance(value, dict):
        return list(map(str, value)), list(value.values())
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, dict) for item in value):
        names = [item.get("label") for item in value]
        named = not any(is_missing(name) for name in names)
        return list(map(_written, names)) if named else _letters(len(value)), [item.get("text") for item in value]
    if isinstance(value, (list, tuple)):
        return _letters(len(value)), list(value)
    raise _no_form(row)


def _letters(number: int) -> list[str]:
    return [LETTERS[place] if place < len(LETTERS) else str(place + 1) for place in range(number)]


def _text(row: Row, value: Any) -> str:
    """A choice as a text, "" where it has none."""
    if is_missing(value):
        return ""
    if isinstance(value, (str, int, float)):
        return _written(value)
    raise _no_form(row)


def _no_form(row: Row) -> UserError:
    value = row.get("choices")
    return UserError(
        f"{where(row)}: choices = {short(value)} must be a list of texts, a list of {{label, text}}, {{text: [...], "
        f"label: [...]}} or an object of names and texts; {mend(value)}."
    )


def _written(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _bare(name: str) -> str:
    return name.strip(AROUND).casefold()


def _found(values: list[Any], wanted: Any) -> int | None:
    return values.index(wanted) if wanted in values else None
