"""Whether settings, tokenizer and model of a task of text go together, told from their configs alone."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.modalities.encode import length_limit
from ftscale.models.agree import STARTS_WITH_THE_END, no_start, start_token
from ftscale.models.languages import target_code
from ftscale.models.lengths import Lengths, model_lengths
from ftscale.models.load import load_generation_config
from ftscale.tasks.base import Task


def text_problems(task: Task, config: Config, model_config: Any, *, targets: str = "") -> list[str]:
    """What does not fit. The tokenizer learns here how much the model takes, which is saved with it.

    `targets`: the setting of the longest target, for a decoder that reads other tokens; "" = there is none.
    """
    lengths = model_lengths(
        model_config,
        auto_class=task.auto_class,
        decodes=bool(targets),
        trust_remote_code=config.model.trust_remote_code,
    )
    virtual, processor = _virtual_tokens(config), task.processor
    if lengths.source is not None:
        # of the samples: transformers has no other place where a tokenizer says what its model takes
        processor.model_max_length = min(processor.model_max_length, lengths.source - virtual)
    asked: list[tuple[str, int | None, int | None]] = [("max_length", task.settings.max_length, lengths.source)]
    if targets:
        own = getattr(task.settings, targets) or length_limit(task.settings.max_length, processor)
        asked.append((targets, own, lengths.target))
    return [
        *(
            _too_long(name, value, most, lengths, virtual=virtual)
            for name, value, most in asked
            if value is not None and most is not None and value > most - virtual
        ),
        *_decoder_problems(task, config, model_config),
    ]


def encoder_problems(config: Config, model_config: Any, *, setting: str) -> list[str]:
    """An encoder that is to tell how a text goes on. `setting`: the task's, that asks for it."""
    settings = model_config.to_dict()
    writes = settings.get("is_decoder") or settings.get("causal") or model_config.is_encoder_decoder
    if model_config.model_type not in ENCODERS or writes:
        return []
    return [
        f"task.{setting} = {getattr(config.task, setting)} needs a model that reads from left to right, and "
        f"model.name = {config.model.name!r} is an encoder ({model_config.model_type}): each token sees the one that "
        "it is to predict; name a decoder, or another task."
    ]


def _decoder_problems(task: Task, config: Config, model_config: Any) -> list[str]:
    """A generation config that cannot be read, and a decoder that does not know how to start."""
    if "writes_text" not in task.settings.can and not model_config.is_encoder_decoder:
        return []
    try:
        own = load_generation_config(config.model)
    except UserError as error:
        return list(error.problems)
    by_language = "writes_text" in task.settings.can and model_config.is_encoder_decoder
    if by_language and target_code(task.processor) is not None:
        return []
    if not model_config.is_encoder_decoder or model_config.model_type in STARTS_WITH_THE_END:
        return []
    return [no_start(task.processor)] if start_token(model_config, own) is None else []


def _virtual_tokens(config: Config) -> int:
    """Positions that a learned prompt or prefix takes before each sample."""
    number = (config.adapter.model_extra or {}).get("num_virtual_tokens")
    return number if isinstance(number, int) else 0


def _too_long(name: str, value: int, most: int, lengths: Lengths, *, virtual: int) -> str:
    taken = f" less the {virtual} of adapter.num_virtual_tokens" if virtual else ""
    way_out = "" if lengths.by_table else ", or raise model.overrides: {max_position_embeddings: ...}"
    return (
        f"task.{name} = {value} is more than the {most} positions of the model{taken}; set it to {most - virtual} or "
        f"less{way_out}."
    )
