"""Tokenizers that write the code of a text's language: mBART, mBART-50, NLLB, M2M100 and their kin."""

from __future__ import annotations

import re
from typing import Any

from ftscale.base.errors import unknown_name

CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")  # fra_Latn, en_XX
SHOWN = 6


def set_languages(tokenizer: Any, *, source: str | None, target: str | None) -> list[str]:
    """Give the tokenizer the languages of the texts, which are saved with it; returns what is wrong with them."""
    asked = {"source_language": source, "target_language": target}
    if not _writes_codes(tokenizer):
        return [
            f"task.{name} = {value!r} is for tokenizers that write the code of a language, and "
            f"{type(tokenizer).__name__} writes none; leave it out, or say it in task.source_prefix."
            for name, value in asked.items()
            if value is not None
        ]
    codes = language_codes(tokenizer)
    problems = []
    for (name, value), attribute in zip(asked.items(), ("src_lang", "tgt_lang"), strict=True):
        value = value or tokenizer.init_kwargs.get(attribute)
        if value is None:
            problems.append(_missing(name, tokenizer, codes))
        elif value not in codes:
            problems.append(unknown_name(f"task.{name}", value, codes))
        else:
            setattr(tokenizer, attribute, value)
    return problems


def language_codes(tokenizer: Any) -> dict[str, int]:
    """The codes of languages that a tokenizer has, with their token ids."""
    if hasattr(tokenizer, "lang_code_to_id"):  # NLLB's has its codes among the special tokens alone
        known = dict(tokenizer.lang_code_to_id)
    else:
        tokens = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
        known = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens if CODE.fullmatch(token)}
    return {code: number for code, number in known.items() if number != tokenizer.unk_token_id}


def target_code(tokenizer: Any) -> int | None:
    """The token id of the target's language; None where the tokenizer writes none."""
    return language_codes(tokenizer)[tokenizer.tgt_lang] if _writes_codes(tokenizer) else None


def _writes_codes(tokenizer: Any) -> bool:
    return hasattr(type(tokenizer), "src_lang")


def _missing(name: str, tokenizer: Any, codes: dict[str, int]) -> str:
    shown = ", ".join(list(codes)[:SHOWN]) + (", ..." if len(codes) > SHOWN else "")
    return (
        f"task.{name} = null, and {type(tokenizer).__name__} writes the code of a language with each text; name it, "
        f"one of the {len(codes)} known: {shown}"
    )
