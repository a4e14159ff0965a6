"""Texts in parts to tokens: what is given is tokenised as when nothing follows yet, and then what a model writes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from ftscale.base.errors import UserError

Span = tuple[int, int]

ANCHORS = ("", "\n", ".")
"""Texts behind which the rest is tokenised: some tokenizers begin every text, but nothing inside one, with a space."""


def tokenize_parts(text: str, starts: Sequence[int], tokenizer: Any) -> tuple[list[int], list[Span], list[int]]:
    """Ids of a text, the characters that each stands for, and how many ids stand before each of `starts`.

    `starts`: characters, in order, at which a model begins to write. The ids before one are those of the text up to
    there alone, which a model is given; where the whole text's begin otherwise (a token would span the place, as that
    of a blank and the word after it), what follows is tokenised apart. Special tokens are not added. A tokenizer
    without a tokenizer.json gives no characters.
    """
    ids, offsets = _plain(text, tokenizer)
    known = set(tokenizer.added_tokens_encoder.values())
    counts = []
    for start in starts:
        count = _given(text[:start], ids, offsets, known, tokenizer)
        if count is None:
            return _cut(text, starts, tokenizer)
        counts.append(count)
    return ids, offsets, counts


def _given(text: str, ids: list[int], offsets: list[Span], known: set[int], tokenizer: Any) -> int | None:
    """How many of the ids are those of the beginning `text`; None where they are not.

    Looked at from the last added token on, by which a text is split before anything else is done with it.
    """
    count = bisect_right(offsets, len(text), key=lambda span: span[1])
    first = next((place for place in range(count - 1, 0, -1) if ids[place] in known), 0)
    begin = offsets[first][0] if offsets and first else 0
    return count if offsets and _plain(text[begin:], tokenizer)[0] == ids[first:count] else None


def _cut(text: str, starts: Sequence[int], tokenizer: Any) -> tuple[list[int], list[Span], list[int]]:
    """`tokenize_parts` where some token spans a start, or reads differently before it."""
    bounds = [*starts, len(text)]
    ids, offsets = _plain(text[: bounds[0]], tokenizer)
    given: tuple[list[int], list[Span], int] = ([], [], 0)  # up to the last place at which the text was cut
    counts = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        counts.append(len(ids))
        longer = _extended(given, text[:stop], tokenizer)
        if longer[0][: len(ids)] != ids:
            given = (ids, offsets, start)
            longer = _extended(given, text[:stop], tokenizer)
        ids, offsets = longer
    return ids, offsets, counts


def special_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before a text and behind it.

    Raises UserError, naming the tokenizer: others than these, one that begins texts twice, or ends them before their
    end.
    """
    bare, full = _plain("a", tokenizer)[0], tokenizer("a", verbose=False)["input_ids"]
    place = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), None)
    if place is None:
        raise _refusal(tokenizer, f"makes {full} of a text that is {bare} without special tokens")
    before, behind = full[:place], full[place + len(bare) :]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(set(before)) < len(before):
        raise _refusal(tokenizer, f"begins a text with one special token twice ({before})")
    if end is not None and (end in behind[:-1] or (end in before and begin not in (None, end))):
        raise _refusal(tokenizer, f"puts its end token {tokenizer.eos_token!r} inside a text ({full})")
    return before, behind


def _extended(given: tuple[list[int], list[Span], int], text: str, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """The tokens of a text whose beginning has been cut off and tokenised."""
    ids, offsets, cut = given
    whole = _plain(text, tokenizer)
    if not cut or cut == len(text):
        return whole if not cut else (ids, offsets)
    wanted, tries = _decoded(whole[0], tokenizer), []
    for anchor in ANCHORS:
        lead = _plain(anchor, tokenizer)[0]
        more, places = _plain(anchor + text[cut:], tokenizer)
        shift = cut - len(anchor)
        behind = [(max(start + shift, cut), end + shift) for start, end in places[len(lead) :]]
        tries.append((ids + more[len(lead) :], offsets + behind))
        if more[: len(lead)] == lead and _decoded(tries[-1][0], tokenizer) == wanted:
            return tries[-1]
    return tries[0]


def _plain(text: str, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """Ids, and for each token the characters it stands for."""
    # verbose: its warning about long texts; they are counted in the data report
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    offsets, previous = [], 0
    for start, end in encoded.get("offset_mapping", ()):
        # some tokenizers (ByteLevel's trim_offsets) leave white space out of offsets: it belongs to the token after it
        offsets.append((min(start, previous), end))
        previous = max(previous, end)
    return encoded["input_ids"], offsets


def _decoded(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _refusal(tokenizer: Any, what: str) -> UserError:
    return UserError(
        f"model.processor: the tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path!r} {what}, so that a "
        "prompt and what follows it cannot be joined; mend its post_processor in tokenizer.json, or use another one."
    )
