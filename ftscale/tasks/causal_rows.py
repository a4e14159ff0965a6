"""Rows of causal language modelling to tokens and labels: plain text, prompt and completion, or a chat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ftscale.data.chat import encode_chat, encode_prompt, normalize, row_tools
from ftscale.data.missing import is_missing
from ftscale.errors import UserError
from ftscale.tasks.base import Row
from ftscale.tasks.collate import IGNORED
from ftscale.tasks.rows import LEAVE_OUT, mend, text_of, where

COLUMNS = ("messages", "conversations", "instruction", "prompt", "text")  # the first of these says what a row is


@dataclass
class EncodedRow:
    """A whole row in tokens, before any cutting."""

    input_ids: list[int]
    labels: list[int]
    """Ids of the targets at their places, -100 elsewhere."""
    reference: str | None
    """The completion or last turn as text; None where the row has none of the model's."""


def encode_row(
    row: Row, tokenizer: Any, *, targets: Literal["assistant", "last", "all"], template: str | None
) -> EncodedRow:
    """Tokens and labels of a row. `targets`, `template`: as in `data.chat.encode_chat`.

    Raises UserError, with the row's place: a column that is no text or no chat, an unusable template.
    """
    column = row_column(row)
    absent = next((role for role in ("completion", "output") if role in row and is_missing(row[role])), None)
    if absent is not None:
        raise UserError(f"{where(row)}: {absent} = {row[absent]!r} must be a text; {mend(row[absent])}.")
    if column == "text":
        ids = encode_text(text_of(row, "text"), tokenizer)
        return EncodedRow(ids, list(ids), reference=None)
    if _is_completion(row, column):
        return _encode_completion(row, tokenizer, every_token=targets == "all")
    if column == "prompt" and targets == "assistant":
        targets = "last"  # turns of the model in `prompt` are given, not to be learned
    with _naming(row):
        messages = normalize(row)
        ids, labels = encode_chat(messages, tokenizer, targets=targets, template=template, tools=row_tools(row))
    last = messages[-1]
    return EncodedRow(ids, labels, reference=last["content"] if last["role"] == "assistant" else None)


def encode_row_prompt(row: Row, tokenizer: Any, *, template: str | None) -> list[int]:
    """Tokens from which the model goes on: a text, a prompt, or a chat up to the model's last turn."""
    column = row_column(row)
    if column == "text" or _is_completion(row, column):
        return _tokens(text_of(row, column), tokenizer)
    with _naming(row):
        return encode_prompt(normalize(row), tokenizer, template=template, tools=row_tools(row))


def encode_text(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a plain text and the end token; nothing of an empty text."""
    return _ended(_tokens(text, tokenizer), tokenizer) if text else []


def row_column(row: Row) -> str:
    """The column that says what a row is."""
    found = next((column for column in COLUMNS if not is_missing(row.get(column))), None)
    if found is None:
        raise UserError(
            f"{where(row)}: none of the columns {', '.join(COLUMNS)} has a value; mend or remove the row, or "
            f"{LEAVE_OUT}."
        )
    return found


def _encode_completion(row: Row, tokenizer: Any, *, every_token: bool) -> EncodedRow:
    prompt, completion = text_of(row, "prompt"), text_of(row, "completion")
    prompt_ids = _tokens(prompt, tokenizer)
    ids = _tokens(prompt + completion, tokenizer)
    if ids[: len(prompt_ids)] != prompt_ids:
        # a token would span both: learn what follows the prompt as it is tokenised when there is no completion yet
        ids = prompt_ids + _tokens(completion, tokenizer, special=False)
    ids = _ended(ids, tokenizer)
    labels = list(ids) if every_token else [IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :]
    return EncodedRow(ids, labels if completion else [IGNORED] * len(ids), reference=completion)


def _is_completion(row: Row, column: str) -> bool:
    return column == "prompt" and not isinstance(row["prompt"], (list, tuple))


def _tokens(text: str, tokenizer: Any, *, special: bool = True) -> list[int]:
    # verbose: its warning about long texts; they are counted in the data report
    return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]


def _ended(ids: list[int], tokenizer: Any) -> list[int]:
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("model.processor: the tokenizer has no eos_token to end a text with; set one in its config.")
    return ids if ids[-1:] == [end] else [*ids, end]


@contextmanager
def _naming(row: Row) -> Iterator[None]:
    """Puts the row's place before the problems found in it."""
    try:
        yield
    except UserError as error:
        raise UserError(*(f"{where(row)}: {problem}" for problem in error.problems)) from error
