"""The answers of a row, in the forms that data sets give them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ftscale.base.errors import UserError
from ftscale.data.missing import is_missing
from ftscale.data.values import short
from ftscale.tasks.base import Row
from ftscale.tasks.rows import where
from ftscale.tasks.written_lists import parse_written

GivenAnswer = tuple[str, int | None]
"""A text, and the character of the context with which it begins, or None where that is not said."""


def answers_of(row: Row) -> list[GivenAnswer]:
    """The answers of a row; none where it has no answer. Raises UserError for a form that is not known.

    `answers`: a list of `{text, answer_start}` (SQuAD), `{text: [...], answer_start: [...]}` (`datasets`), a list of
    texts, or one of these as text; else `answer` and `answer_start`: a text and a number, or a list of each.
    """
    if "answers" not in row:
        return _paired(row, row.get("answer"), row.get("answer_start"), column="answer")
    value = row["answers"]
    if isinstance(value, str):
        value = parse_written(value)
    if isinstance(value, dict):
        return _paired(row, value.get("text"), value.get("answer_start"), column="answers")
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        found = [_paired(row, item.get("text"), item.get("answer_start"), column="answers") for item in value]
        return [answer for one in found for answer in one]
    return _paired(row, value, None, column="answers")


def _paired(row: Row, texts: Any, starts: Any, *, column: str) -> list[GivenAnswer]:
    if not isinstance(texts, (list, tuple)):
        texts, starts = [texts], [starts]
    elif not isinstance(starts, (list, tuple)):
        starts = [starts] * len(texts)
    if len(texts) != len(starts):
        raise UserError(f"{where(row)}: {column} has {len(texts)} texts and {len(starts)} starts; give each text one.")
    pairs = zip(texts, starts, strict=True)
    return [(_text(row, text, column), _start(row, start)) for text, start in pairs if _is_given(text)]


def _is_given(text: Any) -> bool:
    return not is_missing(text) and bool(str(text).strip())


def _text(row: Row, value: Any, column: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f"{where(row)}: {column} = {short(row[column])} must be a text, or a list of {{text, answer_start}}; mend "
            "the row or name another column."
        )
    return value


def _start(row: Row, value: Any) -> int | None:
    if is_missing(value) or value == "":
        return None
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and float(value).is_integer():
            return int(float(value))
    raise UserError(f"{where(row)}: answer_start = {short(value)} must be a whole number of characters; mend the row.")
