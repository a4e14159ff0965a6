"""What of the model that a run begins with meets the task: its head's classes, and how it generates."""

from __future__ import annotations

from typing import Any

from ftscale.config import Config
from ftscale.config.tasks.base import GenerationSettings
from ftscale.models.classes import judge_head, labels_of_model
from ftscale.models.generate import obeyed
from ftscale.models.load import load_generation_config, load_model_config
from ftscale.tasks.base import Task


def in_model_order(config: Config, task: Task, learned: dict[str, Any]) -> dict[str, Any]:
    """What the rows told, with the labels in the order of a pretrained head that has the same ones."""
    if "labels" not in learned or config.model.init == "random" or getattr(config.task, "labels", None) is not None:
        return learned
    own = load_model_config(config.model, settings={})
    return {**learned, "labels": labels_of_model(learned["labels"], own, auto_class=task.auto_class)}


def head_warnings(config: Config, task: Task) -> list[str]:
    """What becomes of the head that the model brings along, where that may not be what was meant."""
    if not task.brings_head or config.model.init == "random" or config.head.hidden_sizes:
        return []
    own = load_model_config(config.model, settings={})
    said = judge_head(own, task.model_settings(), auto_class=task.auto_class, keep=config.head.keep).said
    return [f"{said}."] if said else []


def generation_facts(config: Config) -> dict[str, Any]:
    """What besides the run's own settings says which token may follow: the model's generation config, and options."""
    if "writes_text" not in config.task.can:
        return {}
    own = load_generation_config(config.model)
    return obeyed(own, getattr(config.task, "generate", None) or GenerationSettings())
