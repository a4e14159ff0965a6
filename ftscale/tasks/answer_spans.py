"""Questions with their contexts in windows of tokens, and the pieces of a context that answer: where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Span = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A question with a part of its context."""

    inputs: dict[str, list[int]]
    """`input_ids`, and `token_type_ids` where the tokenizer gives them."""
    offsets: list[Span]
    """For each token of the context that is in it, the characters of the context that it stands for."""
    first: int
    """The position of the first of these."""
    null: int
    """The position that says that no answer is here."""
    own: Span
    """Which of `offsets` no other window has with more context: first, and the one after the last."""

    def positions(self, span: Span) -> Span:
        """First and last position of the tokens that hold characters of the context; `null` twice where some lack."""
        start, stop = span
        held = [place for place, (begin, end) in enumerate(self.offsets) if begin < stop and end > start]
        if not held or self.offsets[0][0] > start or self.offsets[-1][1] < stop:
            return self.null, self.null
        return self.first + held[0], self.first + held[-1]


@dataclass(frozen=True)
class Candidate:
    """The likeliest answer of a window."""

    score: float
    """The sum of the logits of its start and end."""
    first: int
    """In the window's `offsets`, the token with which it starts."""
    last: int
    """The token with which it ends."""


def windows(
    tokenizer: Any, questions: Sequence[str], contexts: Sequence[str], *, limit: int, stride: int
) -> list[list[Window]]:
    """For each question its windows, at most `limit` tokens each, `stride` tokens of the context in two of them.

    The tokenizer must be fast, and the questions short enough for more than `stride` tokens of context in a window.
    """
    encoded = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=limit,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    parts: list[list[int]] = [[] for _ in questions]
    for place, row in enumerate(encoded["overflow_to_sample_mapping"]):
        parts[row].append(place)
    return [
        _of_row(tokenizer, encoded, places, context, stride=stride)
        for places, context in zip(parts, contexts, strict=True)
    ]


def _of_row(tokenizer: Any, encoded: Any, places: Sequence[int], context: str, *, stride: int) -> list[Window]:
    of_context = [[at for at, part in enumerate(encoded.sequence_ids(place)) if part == 1] for place in places]
    counts = [len(positions) for positions in of_context]
    step = counts[0] - stride
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    found = []
    for place, positions, own in zip(places, of_context, most_context(counts, step=step), strict=True):
        inputs = {name: list(encoded[name][place]) for name in names}
        offsets = [_without_blanks(context, encoded["offset_mapping"][place][at]) for at in positions]
        null = null_position(inputs["input_ids"], tokenizer)
        found.append(Window(inputs, offsets, positions[0] if positions else len(inputs["input_ids"]), null, own))
    return found


def null_position(ids: Sequence[int], tokenizer: Any) -> int:
    """Where the beginning-of-sequence token stands, by which a window says that it holds no answer; else the first."""
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token is not None and token in ids:
            return ids.index(token)
    return 0


def most_context(counts: Sequence[int], *, step: int) -> list[Span]:
    """Of windows that begin `step` tokens after each other and have so many: which tokens have most context there.

    A token's context is the lesser of the tokens before it and behind it in the window, and a hundredth of the window's
    length; of equal ones the first (J. Devlin et al., BERT, 2019, run_squad.py). Returns, for each window, its tokens.
    """
    if len(counts) == 1:
        return [(0, counts[0])]
    begins = [number * step for number in range(len(counts))]
    tokens = np.arange(begins[-1] + counts[-1])
    context = np.full((len(counts), len(tokens)), -np.inf)
    for number, (begin, count) in enumerate(zip(begins, counts, strict=True)):
        at = np.arange(count)
        context[number, begin : begin + count] = np.minimum(at, count - 1 - at) + 0.01 * count
    best = context.argmax(axis=0)
    own = []
    for number, begin in enumerate(begins):
        mine = np.flatnonzero(best == number)
        own.append((int(mine[0]) - begin, int(mine[-1]) + 1 - begin) if len(mine) else (0, 0))
    return own


def best_answer(
    starts: np.ndarray, ends: np.ndarray, *, first: int, count: int, own: Span, n_best: int, longest: int
) -> Candidate | None:
    """The likeliest answer of a window among the `n_best` starts with the `n_best` ends; None = no such pair is one.

    starts, ends: (tokens,) float32 logits of the window. An answer lies in the `count` tokens of the context from
    position `first` on, starts in `own`, and has at most `longest` tokens. As transformers' example utils_qa.py.
    """
    chosen = [np.argsort(values)[-1 : -n_best - 1 : -1] - first for values in (starts, ends)]
    best: Candidate | None = None
    for start in chosen[0].tolist():
        if not own[0] <= start < own[1]:
            continue
        for end in chosen[1].tolist():
            if start <= end < min(count, start + longest):
                score = float(starts[first + start] + ends[first + end])
                if best is None or score > best.score:
                    best = Candidate(score, start, end)
    return best


def nearest_place(text: str, context: str, near: int | None) -> Span | None:
    """Where a text stands in a context, of several places the one that begins nearest to `near`, or the first.

    White space around the text is none of it. None where the context does not have it.
    """
    stripped = text.strip()
    if not stripped:
        return None
    if near is not None:
        near += len(text) - len(text.lstrip())
    places, start = [], context.find(stripped)
    while start != -1:
        places.append(start)
        start = context.find(stripped, start + 1)
    if not places:
        return None
    begin = places[0] if near is None else min(places, key=lambda place: abs(place - near))
    return begin, begin + len(stripped)


def _without_blanks(context: str, span: Span) -> Span:
    """The characters of a token without the white space that byte-level tokenizers count to it."""
    start, stop = span
    while start < stop and context[start].isspace():
        start += 1
    while stop > start and context[stop - 1].isspace():
        stop -= 1
    return start, stop
