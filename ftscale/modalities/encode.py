"""Texts to token ids, and what happens to the too long ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

NO_SETTING_LIMIT = 2048  # tokens, where neither the user nor the tokenizer says less


@dataclass
class Encoded:
    """A text in tokens."""

    inputs: dict[str, list[int]]
    """`input_ids`, and `token_type_ids` where the tokenizer gives them; at most the limit."""
    length: int
    """Tokens before cutting."""
    words: list[int | None]
    """The word that each token belongs to, None for special tokens; empty where it was not asked for."""


def length_limit(max_length: int | None, tokenizer: Any) -> int:
    """Longest sample in tokens: the setting, or what the tokenizer says the model takes, at most 2048."""
    return max_length if max_length is not None else min(tokenizer.model_max_length, NO_SETTING_LIMIT)


def encode(
    tokenizer: Any,
    texts: Sequence[str | list[str]],
    *,
    limit: int,
    pairs: Sequence[str] | None = None,
    kind: Literal["text", "words", "target"] = "text",
    by_word: bool = False,
    cut: Literal["longer", "first"] = "longer",
) -> list[Encoded]:
    """Tokenise texts, cut to `limit` tokens: of a pair the longer text, or the first alone, which must be long enough.

    `kind`: plain texts, lists of words, or texts that a decoder is to write. `by_word`: say which word each token
    belongs to, as is always said of lists of words; of plain texts, words are what the tokenizer parts them into. A
    text without tokens becomes the end token, since a model needs at least one.
    """
    by_word = by_word or kind == "words"
    encodings = _call(tokenizer, texts, pairs, kind=kind, limit=None, by_word=by_word)
    lengths = [len(item.inputs["input_ids"]) for item in encodings]
    long = [index for index, length in enumerate(lengths) if length > limit]
    if long:
        some_pairs = [pairs[index] for index in long] if pairs is not None else None
        some = [texts[index] for index in long]
        shorter = _call(tokenizer, some, some_pairs, kind=kind, limit=limit, by_word=by_word, cut=cut)
        for index, item in zip(long, shorter, strict=True):
            encodings[index] = Encoded(item.inputs, lengths[index], item.words)
    return encodings


def _call(
    tokenizer: Any,
    texts: Sequence[str | list[str]],
    pairs: Sequence[str] | None,
    *,
    kind: Literal["text", "words", "target"],
    limit: int | None,
    by_word: bool,
    cut: Literal["longer", "first"] = "longer",
) -> list[Encoded]:
    first = {"text_target": list(texts)} if kind == "target" else {"text": list(texts), "text_pair": pairs}
    batch = tokenizer(
        **first,
        is_split_into_words=kind == "words",
        truncation=False if limit is None else "only_first" if cut == "first" else True,
        max_length=limit,
        return_attention_mask=False,
        verbose=False,  # its warning about long texts: they are counted in the data report
    )
    columns = {name: batch[name] for name in ("input_ids", "token_type_ids") if name in batch}
    encodings = []
    for index in range(len(columns["input_ids"])):
        inputs = {name: list(values[index]) for name, values in columns.items()}
        words = batch.word_ids(index) if by_word else []
        if not inputs["input_ids"]:
            inputs = dict.fromkeys(columns, [0]) | {"input_ids": [end_token(tokenizer)]}
            words = [None] if by_word else []
        encodings.append(Encoded(inputs, len(inputs["input_ids"]), words))
    return encodings


def end_token(tokenizer: Any) -> int:
    """The id of the end token, or of the padding token where there is none."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id
