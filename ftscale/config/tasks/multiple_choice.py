"""Settings of multiple choice."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ftscale.config.tasks.base import Capability, Columns, TextSettings


class MultipleChoiceSettings(TextSettings):
    """The right one of the `choices` for a `question`, perhaps about a `context`: `label`."""

    columns: ClassVar[Columns] = (("context", "question", "choices", "label"), ("question", "choices", "label"))
    label_columns: ClassVar[frozenset[str]] = frozenset({"label"})
    optional_columns: ClassVar[frozenset[str]] = frozenset({"context"})
    text_column: ClassVar[str | None] = None
    learned: ClassVar[dict[str, Any]] = {"label_form": None}
    can: ClassVar[frozenset[Capability]] = frozenset({"flat_rows", "brings_head"})
    name: Literal["multiple_choice"] = "multiple_choice"
    """The task."""
    scoring: Literal["head", "likelihood", "likelihood_per_character"] = "head"
    """What tells the choices apart: a new head over each, of an encoder; or how likely a decoder finds each behind the
    question: the log-probability of its tokens, or that divided by its characters."""
    label_form: Literal["name", "text", "number_from_0", "number_from_1"] | None = None
    """How `label` says which choice is right: by its name in the file (else A, B, C, ...), by its text, or by its
    number, from 0 or from 1; null = the first of these that all training rows fit."""
