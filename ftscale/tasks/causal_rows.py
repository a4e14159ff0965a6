"""Rows of causal language modelling to tokens and labels: plain text, prompt and completion, or a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from ftscale.base.errors import UserError
from ftscale.data.chat import encode_conversation, encode_prompt, normalize, row_tools
from ftscale.data.missing import is_missing
from ftscale.data.parts import special_frame, tokenize_parts
from ftscale.modalities.collate import IGNORED
from ftscale.tasks.base import Row
from ftscale.tasks.rows import LEAVE_OUT, mend, text_of, where

BATCH_CHARACTERS = 100_000
"""Characters of plain texts that are tokenised together: a tokenizer takes 150 bytes of memory for each."""
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


def encode_rows(
    rows: Sequence[Row], tokenizer: Any, *, targets: Literal["assistant", "last", "all"], template: str | None
) -> Iterator[EncodedRow]:
    """Tokens and labels of rows, in order. `targets`, `template`: as in `data.chat.encode_chat`.

    Raises UserError, with the row's place: a column that is no text or no chat, an unusable template.
    """
    columns = [_answered_column(row) for row in rows]
    texts = [text_of(row, column) for row, column in zip(rows, columns, strict=True) if column == "text"]
    encoded = iter(encode_texts(texts, tokenizer))
    frame = cache(lambda: special_frame(tokenizer))
    for row, column in zip(rows, columns, strict=True):
        if column == "text":
            ids = next(encoded)
            yield EncodedRow(ids, list(ids), reference=None)
        elif is_completion(row, column):
            yield _encode_completion(row, tokenizer, frame, every_token=targets == "all")
        else:
            # turns of the model in `prompt` are given, not to be learned
            learned = "last" if column == "prompt" and targets == "assistant" else targets
            yield _encode_chat(row, tokenizer, targets=learned, template=template)


def encode_row(
    row: Row, tokenizer: Any, *, targets: Literal["assistant", "last", "all"], template: str | None
) -> EncodedRow:
    """`encode_rows` of one."""
    return next(encode_rows([row], tokenizer, targets=targets, template=template))


def encode_row_prompt(row: Row, tokenizer: Any, *, template: str | None) -> list[int]:
    """Tokens from which the model goes on: a text, a prompt, or a chat up to the model's last turn."""
    column = row_column(row)
    with _naming(row):
        if column == "text" or is_completion(row, column):
            return _begun(text_of(row, column), tokenizer, special_frame(tokenizer)[0])
        return encode_prompt(normalize(row), tokenizer, template=template, tools=row_tools(row))


def encode_texts(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokens of plain texts, each with the end token; nothing of an empty text."""
    found: list[list[int]] = []
    for batch in _batches(texts):
        # verbose: its warning about long texts; they are counted in the data report
        found += tokenizer(batch, return_attention_mask=False, verbose=False)["input_ids"]
    return [_ended(ids, tokenizer) if text else [] for text, ids in zip(texts, found, strict=True)]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def row_column(row: Row) -> str:
    """The column that says what a row is."""
    found = next((column for column in COLUMNS if not is_missing(row.get(column))), None)
    if found is None:
        raise UserError(
            f"{where(row)}: none of the columns {', '.join(COLUMNS)} has a value; mend or remove the row, or "
            f"{LEAVE_OUT}."
        )
    return found


def _answered_column(row: Row) -> str:
    """`row_column` of a row whose answer, where it has a column of one, is not missing."""
    column = row_column(row)
    absent = next((role for role in ("completion", "output") if role in row and is_missing(row[role])), None)
    if absent is not None:
        raise UserError(f"{where(row)}: {absent} = {row[absent]!r} must be a text; {mend(row[absent])}.")
    return column


def _encode_chat(
    row: Row, tokenizer: Any, *, targets: Literal["assistant", "last", "all"], template: str | None
) -> EncodedRow:
    with _naming(row):
        messages = normalize(row)
        chat = encode_conversation(messages, tokenizer, targets=targets, template=template, tools=row_tools(row))
    last = messages[-1]
    reference = last["content"] if last["role"] == "assistant" else None
    told = {"said": chat.said, "left_out": chat.left_out, "unseen_prompt": chat.unseen_prompt}
    return EncodedRow(chat.input_ids, chat.labels, reference, told)


def _encode_completion(
    row: Row, tokenizer: Any, frame: Callable[[], tuple[list[int], list[int]]], *, every_token: bool
) -> EncodedRow:
    """Prompt and completion with the special tokens that their whole text has: before both, and behind both."""
    prompt, completion = text_of(row, "prompt"), text_of(row, "completion")
    with _naming(row):
        start, behind = frame()
        before = _begun(prompt, tokenizer, start)
    joined = start + tokenize_parts(prompt + completion, [len(prompt)], tokenizer)[0]
    ids = _ended(joined if joined[-1:] == behind[-1:] else joined + behind, tokenizer)
    labels = list(ids) if every_token else [IGNORED] * len(before) + ids[len(before) :]
    return EncodedRow(ids, labels if completion else [IGNORED] * len(ids), reference=completion)


def _begun(text: str, tokenizer: Any, start: list[int]) -> list[int]:
    """Tokens of a text that goes on: what a tokenizer puts behind a whole text, as an end token, is left out.

    `start`: the special tokens that it puts before one.
    """
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
