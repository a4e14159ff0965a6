"""What a tokenizer loses of a text: tokens that it does not know, and characters that it cannot write."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from ftscale.data.sample import Sample
from ftscale.tasks.base import Row, Task

SHOWN = 12


def lost_text(rows: Sequence[Row], kept: Sequence[Sample], task: Task) -> dict[str, Any]:
    """`unknown_tokens`: their share, where the tokenizer has a token for them, and `unknown_characters`.

    Of tasks that write, `unwritable_targets`: rows whose target has a character that does not come back when it is
    tokenised and decoded, and `unwritable_characters`. Characters come with the rows that they are in.
    """
    facts: dict[str, Any] = {}
    tokenizer, writes = task.processor, "writes_text" in task.settings.can
    read = task.settings.input_columns | (task.settings.label_columns if writes else frozenset())
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id):
        ids = [token for item in kept for token in task.token_ids(item)]
        facts["unknown_tokens"] = ids.count(unknown) / len(ids) if ids else 0.0
        lost: Counter[str] = Counter()
        if facts["unknown_tokens"]:
            known: dict[str, bool] = {}
            for row in rows:
                lost.update(_failing(_strings(row, read), known, lambda one: _knows(tokenizer, one, unknown)))
        facts["unknown_characters"] = dict(lost.most_common(SHOWN))
    if writes:
        written: dict[str, bool] = {}
        found = [_failing(task.target_texts(row), written, lambda one: _writes(tokenizer, one)) for row in rows]
        facts["unwritable_targets"] = sum(bool(characters) for characters in found)
        counts = Counter(character for characters in found for character in characters)
        facts["unwritable_characters"] = dict(counts.most_common(SHOWN))
    return facts


def _failing(texts: Iterable[str], judged: dict[str, bool], judge: Any) -> set[str]:
    """The characters of texts that a tokenizer fails at; each is judged once."""
    failing = set()
    for character in set().union(*texts):
        if character not in judged:
            judged[character] = judge(character)
        if not judged[character]:
            failing.add(character)
    return failing


def _knows(tokenizer: Any, character: str, unknown: int) -> bool:
    return unknown not in tokenizer(character, add_special_tokens=False)["input_ids"]


def _writes(tokenizer: Any, character: str) -> bool:
    """Between two letters, since some tokenizers drop white space at the ends of a text."""
    text = f"a{character}a"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if character.isspace():
        return back.strip() == text
    # WordPiece decodes punctuation with spaces around it, and composed letters look the same
    return _plain(back) == _plain(text)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", "".join(text.split()))


def _strings(row: Row, read: Collection[str]) -> Iterator[str]:
    for name, value in row.items():
        if name in read:
            yield from _strings_in(value)


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings_in(item)
