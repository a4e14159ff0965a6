"""What training rows and the model that a run begins with tell the task: classes, a processor, how it generates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.base import GenerationSettings
from ftscale.methods import build_method
from ftscale.methods.base import Method
from ftscale.models.classes import judge_head, labels_of_model
from ftscale.models.generate import obeyed
from ftscale.models.load import load_generation_config, load_model_config
from ftscale.precheck.settings import fit_problems
from ftscale.tasks.base import Task


def fitted(
    config: Config, task: Method, processor: Any, told: Mapping[str, Any]
) -> tuple[Config, Method, dict[str, Any]]:
    """The configuration with what the training rows told filled in, its task bound to a processor, and those settings.

    `told`: what `task.fit` returned; where `processor`, from `check_config`, is None, it is built of that. Raises
    UserError where it does not go with the model.
    """
    learned = {name: told[name] for name in sorted(task.modality.learns) if name in told}
    of_task = {name: value for name, value in told.items() if name not in learned}
    settings = in_model_order(config, task, of_task)
    config = config.model_copy(update={"task": config.task.model_copy(update=settings)})
    if processor is None and learned:
        processor = task.modality.load_processor(config.model, learned=learned)
        if problems := fit_problems(config, load_model_config(config.model, settings={}), processor):
            raise UserError(*problems)
    return config, build_method(config.method, config.task, processor), settings


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
