"""Whether settings, processor and model go together, told from their configs alone."""

from __future__ import annotations

from typing import Any

from ftscale.config import Config
from ftscale.config.schema import (
    CausalLMSettings,
    GenerationSettings,
    ImageClassificationSettings,
    Seq2SeqSettings,
    TextSettings,
)
from ftscale.errors import UserError
from ftscale.models.agree import STARTS_WITH_THE_END, no_start, start_token
from ftscale.models.classes import judge_head, labels_of_model
from ftscale.models.generate import obeyed
from ftscale.models.languages import set_languages, target_code
from ftscale.models.lengths import Lengths, model_lengths
from ftscale.models.load import load_generation_config, load_model_config
from ftscale.precheck.images import image_problems
from ftscale.tasks.base import Task
from ftscale.tasks.encode import length_limit


def fit_problems(config: Config, task: Task, model_config: Any, processor: Any) -> list[str]:
    """What does not fit. The tokenizer learns here how much the model takes, and in which languages; both are saved."""
    if isinstance(config.task, ImageClassificationSettings):
        return image_problems(config, config.task, task, model_config, processor)
    lengths = model_lengths(model_config, auto_class=task.auto_class, trust_remote_code=config.model.trust_remote_code)
    virtual = _virtual_tokens(config)
    if lengths.source is not None:
        # of the samples: transformers has no other place where a tokenizer says what its model takes
        processor.model_max_length = min(processor.model_max_length, lengths.source - virtual)
    return [
        *_length_problems(config.task, processor, lengths, virtual=virtual),
        *_decoder_problems(config, model_config, processor),
    ]


def _decoder_problems(config: Config, model_config: Any, processor: Any) -> list[str]:
    """Languages, and the token with which a decoder starts."""
    problems, told, own = [], False, None
    if isinstance(config.task, (CausalLMSettings, Seq2SeqSettings)) or model_config.is_encoder_decoder:
        try:
            own = load_generation_config(config.model)
        except UserError as error:
            return list(error.problems)
    if isinstance(config.task, Seq2SeqSettings):
        problems = set_languages(processor, config.task)
        told = not problems and target_code(processor) is not None
    if told or own is None or not model_config.is_encoder_decoder or model_config.model_type in STARTS_WITH_THE_END:
        return problems
    return [*problems, *([no_start(processor)] if start_token(model_config, own) is None else [])]


def in_model_order(config: Config, task: Task, learned: dict[str, Any]) -> dict[str, Any]:
    """What the rows told, with the labels in the order of a pretrained head that has the same ones."""
    if isinstance(config.task, (CausalLMSettings, Seq2SeqSettings)) or config.task.labels is not None:
        return learned
    if "labels" not in learned or config.model.init == "random":
        return learned
    own = load_model_config(config.model, settings={})
    return {**learned, "labels": labels_of_model(learned["labels"], own, auto_class=task.auto_class)}


def head_warnings(config: Config, task: Task) -> list[str]:
    """What becomes of the head that the model brings along, where that may not be what was meant."""
    settings = task.model_settings()
    if "num_labels" not in settings or config.model.init == "random" or config.head.hidden_sizes:
        return []
    own = load_model_config(config.model, settings={})
    said = judge_head(own, settings, auto_class=task.auto_class, keep=config.head.keep).said
    return [f"{said}."] if said else []


def generation_facts(config: Config) -> dict[str, Any]:
    """What besides the run's own settings says which token may follow: the model's generation config, and options."""
    if not isinstance(config.task, (CausalLMSettings, Seq2SeqSettings)):
        return {}
    own = load_generation_config(config.model)
    return obeyed(own, config.task.generate or GenerationSettings())


def _virtual_tokens(config: Config) -> int:
    """Positions that a learned prompt or prefix takes before each sample."""
    number = (config.adapter.model_extra or {}).get("num_virtual_tokens")
    return number if isinstance(number, int) else 0


def _length_problems(task: TextSettings, processor: Any, lengths: Lengths, *, virtual: int) -> list[str]:
    settings: list[tuple[str, int | None, int | None]] = [("max_length", task.max_length, lengths.source)]
    if isinstance(task, Seq2SeqSettings):
        own = task.max_target_length or length_limit(task.max_length, processor)
        settings.append(("max_target_length", own, lengths.target))
    return [
        _too_long(name, value, most, lengths, virtual=virtual)
        for name, value, most in settings
        if value is not None and most is not None and value > most - virtual
    ]


def _too_long(name: str, value: int, most: int, lengths: Lengths, *, virtual: int) -> str:
    taken = f" less the {virtual} of adapter.num_virtual_tokens" if virtual else ""
    way_out = "" if lengths.by_table else ", or raise model.overrides: {max_position_embeddings: ...}"
    return (
        f"task.{name} = {value} is more than the {most} positions of the model{taken}; set it to {most - virtual} or "
        f"less{way_out}."
    )
