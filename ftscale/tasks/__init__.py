"""The table of tasks: a name, and the class that is imported when it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ftscale.config.schema import TextClassificationSettings

if TYPE_CHECKING:
    from ftscale.config.schema import Section
    from ftscale.tasks.base import Task

TASKS = {
    "text_classification": "ftscale.tasks.text_classification:TextClassification",
    "token_classification": "ftscale.tasks.token_classification:TokenClassification",
    "causal_lm": "ftscale.tasks.causal_lm:CausalLM",
    "seq2seq": "ftscale.tasks.seq2seq:Seq2Seq",
    "image_classification": "ftscale.tasks.image_classification:ImageClassification",
}

COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {  # here, where they can be read without importing torch
    "text_classification": (("text", "text_pair", "label"), ("text", "label")),
    "token_classification": (("words", "tags"),),
    "causal_lm": (  # with what is optional first
        ("messages", "tools"),
        ("messages",),
        ("conversations", "tools"),
        ("conversations",),
        ("instruction", "input", "output"),
        ("instruction", "output"),
        ("prompt", "completion"),
        ("text",),
    ),
    "seq2seq": (("source", "target"),),
    "image_classification": (("image", "label"),),
}
"""Alternatives of column names of each task, one of which a row must have whole."""


def columns_of(settings: Section) -> tuple[tuple[str, ...], ...]:
    """The alternatives of a task with these settings: several classes may also stand in a column each."""
    name: str = settings.name  # type: ignore[attr-defined]
    known = COLUMNS[name]
    if not isinstance(settings, TextClassificationSettings) or settings.problem != "multi_label":
        return known
    labels = settings.labels or ()
    if not labels or set(labels) & {role for alternative in known for role in alternative}:
        return known
    return (*known, *((*alternative[:-1], *labels) for alternative in known))


def build_task(settings: Section) -> Task:
    """The task that a config's `task` section describes."""
    module, name = TASKS[settings.name].split(":")  # type: ignore[attr-defined]
    return getattr(import_module(module), name)(settings)
