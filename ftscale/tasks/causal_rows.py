"""Rows of causal language modelling to tokens and labels: plain text, prompt and completion, or a chat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from ftscale.base.errors import UserError
from ftscale.data.chat import encode_conversation, encode_prompt, normalize, row_tools
from ftscale.data.missing import is_missing
from ftscale.data.parts import special_frame, tokenize_parts
from ftscale.modalities.collate import IGNORED
from ftscale.tasks.base import Row
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
    of_template: dict[str, Any] = field(default_factory=dict)
    """Of a chat: what its template did with it, as a sample tells it (`data.prepare.SourceReport`)."""


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
    if is_completion(row, column):
        return _encode_completion(row, tokenizer, every_token=targets == "all")
    if column == "prompt" and targets == "assistant":
        targets = "last"  # turns of the model in `prompt` are given, not to be learned
    with _naming(row):
        messages = normalize(row)
        chat = encode_conversation(messages, tokenizer, targets=targets, template=template, tools=row_tools(row))
    last = messages[-1]
    reference = last["content"] if last["role"] == "assistant" else None
    told = {"said": chat.said, "left_out": chat.left_out, "unseen_prompt": chat.unseen_prompt}
    return EncodedRow(chat.input_ids, chat.labels, reference, told)


def encode_row_prompt(row: Row, tokenizer: Any, *, template: str | None) -> list[int]:
    """Tokens from which the model goes on: a text, a prompt, or a chat up to the model's last turn."""
    column = row_column(row)
    with _naming(row):
        if column == "text" or is_completion(row, column):
            return _begun(text_of(row, column), tokenizer)
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
    """Prompt and completion with the special tokens that their whole text has: before both, and behind both."""
    prompt, completion = text_of(row, "prompt"), text_of(row, "completion")
    with _naming(row):
        before = _begun(prompt, tokenizer)
    start, behind = special_frame(tokenizer)
    joined = start + tokenize_parts(prompt + completion, [len(prompt)], tokenizer)[0]
    ids = _ended(joined if joined[-1:] == behind[-1:] else joined + behind, tokenizer)
    labels = list(ids) if every_token else [IGNORED] * len(before) + ids[len(before) :]
    return EncodedRow(ids, labels if completion else [IGNORED] * len(ids), reference=completion)


def _begun(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a text that goes on: what a tokenizer puts behind a whole text, as an end token, is left out."""
    start, _ = special_frame(tokenizer)
    ids = tokenize_parts(text, (), tokenizer)[0]
    if start and ids[:1] == start[-1:]:
        token = tokenizer.convert_ids_to_tokens(start[-1])
        raise UserError(
            f"the text begins with {token!r}, which the tokenizer {type(tokenizer).__name__} of "
            f"{tokenizer.name_or_path!r} puts before every text: take it out of the row."
        )
    return start + ids


def is_completion(row: Row, column: str) -> bool:
    """Whether a row is a prompt and its completion as texts. `column`: see `row_column`."""
    return column == "prompt" and not isinstance(row["prompt"], (list, tuple))


def _tokens(text: str, tokenizer: Any) -> list[int]:
    # verbose: its warning about long texts; they are counted in the data report
    return tokenizer(text, verbose=False)["input_ids"]


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
