"""Whether settings, processor and model go together, told from their configs alone."""

from __future__ import annotations

from typing import Any

from ftscale.config import Config
from ftscale.config.schema import Seq2SeqSettings, TextSettings
from ftscale.models.lengths import Lengths, model_lengths
from ftscale.tasks.base import Task
from ftscale.tasks.encode import length_limit


def fit_problems(config: Config, task: Task, model_config: Any, processor: Any) -> list[str]:
    """What does not fit. The tokenizer learns here how much the model takes, and is saved with it."""
    if not isinstance(config.task, TextSettings):
        return []
    lengths = model_lengths(model_config, auto_class=task.auto_class, trust_remote_code=config.model.trust_remote_code)
    virtual = _virtual_tokens(config)
    if lengths.source is not None:
        # of the samples: transformers has no other place where a tokenizer says what its model takes
        processor.model_max_length = min(processor.model_max_length, lengths.source - virtual)
    return _length_problems(config.task, processor, lengths, virtual=virtual)


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
