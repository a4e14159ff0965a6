"""Tokens that the model has never seen, and whether their embeddings train."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.models.load import load_model_config
from ftscale.models.without_weights import model_without_weights
from ftscale.tasks.base import Task

SHOWN = 6
OTHER_IDS = 0.01
"""Share of the common tokens with other ids from which on a tokenizer is not the model's."""


def vocabulary_warnings(config: Config, task: Task) -> list[str]:
    """New tokens whose random embeddings stay as they are, and a tokenizer whose ids stand for other tokens."""
    if not task.modality.in_tokens or config.model.init == "random":
        return []
    model_config = load_model_config(config.model, settings={})
    known, tokens = _own_vocabulary(config, task), task.processor.get_vocab()
    found = [_other_ids(tokens, known)] if known else []
    rows = model_config.get_text_config().vocab_size
    new = sorted(
        (number, token) for token, number in tokens.items() if number >= rows or (known and token not in known)
    )
    if new and len(new) < len(tokens) / 2:  # else it is another tokenizer altogether
        found.append(_untrained(config, task, model_config, new, rows=rows))
    return [sentence for sentence in found if sentence]


def _own_vocabulary(config: Config, task: Task) -> dict[str, int]:
    """Of the tokenizer that came with the model, where another one is used; empty where there is none."""
    if config.model.processor in (None, config.model.name):
        return {}
    try:
        own = task.modality.load_processor(config.model.model_copy(update={"processor": None}))
    except UserError:  # a folder of weights alone
        return {}
    return own.get_vocab()


def _other_ids(tokens: dict[str, int], known: dict[str, int]) -> str:
    common = tokens.keys() & known.keys()
    moved = sum(tokens[token] != known[token] for token in common)
    if common and moved <= OTHER_IDS * len(common):
        return ""
    return (
        f"model.processor gives other ids than the model's own tokenizer to {moved} of {len(common)} tokens that both "
        "know: their embeddings were trained for others; leave model.processor out, or train from model.init: random."
    )


def _untrained(config: Config, task: Task, model_config: Any, new: list[tuple[int, str]], *, rows: int) -> str:
    names = _embedding_names(config, task, model_config)
    still = [(number, token) for number, token in new if not _trains(config, number, names)]
    if not still:
        return ""
    shown = ", ".join(token for _, token in still[:SHOWN]) + (", ..." if len(still) > SHOWN else "")
    spare = sum(number < rows for number, _ in still)
    where = f" ({spare} of them in spare rows of the embedding)" if spare else ""
    numbers = [number for number, _ in still]
    ids = f"[{numbers[0]}, ..., {numbers[-1]}]" if len(numbers) > SHOWN else str(numbers)
    fix = (
        f"set adapter.modules_to_save: [{', '.join(names)}] (whole), or with lora adapter.trainable_token_indices: "
        f"{ids} (their rows alone)"
        if config.adapter.method != "none"
        else "leave out trainable.freeze_embeddings, or set trainable.scope: all"
    )
    return f"{len(still)} tokens are new to the model{where}, and their random embeddings do not train: {shown}; {fix}."


def _trains(config: Config, number: int, names: Sequence[str]) -> bool:
    if config.adapter.method == "none":
        settings = config.trainable
        named = any(re.search(pattern, f"{names[0]}.weight") for pattern in settings.patterns)
        return named or (settings.scope == "all" and not settings.freeze_embeddings)
    options = config.adapter.model_extra or {}
    whole = [options.get("modules_to_save") or [], options.get("target_modules") or []]
    if any(_names(given, names[0]) for given in whole):
        return True
    indices = options.get("trainable_token_indices", options.get("token_indices")) or []
    listed = [item for part in indices.values() for item in part] if isinstance(indices, dict) else indices
    return number in listed


def _names(given: Any, name: str) -> bool:
    """Whether peft's list of modules, or its regular expression, means the module of this name."""
    if isinstance(given, str):
        return re.fullmatch(given, f"model.{name}") is not None or re.fullmatch(given, name) is not None
    return any(item == name or str(item).endswith(f".{name}") for item in given)


def _embedding_names(config: Config, task: Task, model_config: Any) -> list[str]:
    """The input embedding's module, and the output's where it is another weight."""
    trust = config.model.trust_remote_code
    model = model_without_weights(model_config, auto_class=task.auto_class, trust_remote_code=trust)
    if model is None:
        return ["embed_tokens"]
    wanted = [model.get_input_embeddings(), model.get_output_embeddings()]
    found = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    tied = model_config.get_text_config().tie_word_embeddings
    return [found[id(module)] for module in (wanted[:1] if tied else wanted) if module is not None]
