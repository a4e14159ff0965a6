"""What a task's settings are made of, and what they say of the task where torch is not imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, PositiveInt, model_validator

from ftscale.config.class_names import names_and_ids, only_names
from ftscale.config.section import Section

Labels = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(only_names, json_schema_input_type=list[str | int] | dict[str, str] | str | None),
]

Columns = tuple[tuple[str, ...], ...]
"""Alternatives of column names, one of which a row must have whole, e.g. (("text", "label"),)."""

Capability = Literal[
    "flat_rows", "brings_head", "writes_text", "tags_words", "embeds", "gives_logits", "scores_sequences"
]
"""What a task can, for combinations that are judged before torch is imported:

- `flat_rows`: its samples may lie end to end in one row;
- `brings_head`: its head is new and its own, with rows for the task's classes;
- `writes_text`: the model writes tokens, so that its targets are text and it can be asked to generate;
- `tags_words`: it gives each word of a row a tag;
- `embeds`, `gives_logits`, `scores_sequences`: it has the methods of `ftscale/tasks/capabilities.py`, of which a method
  of learning may need some.
"""


class TaskSettings(Section):
    """What all tasks' settings share; a task is the class of the same name in `ftscale/tasks/`."""

    columns: ClassVar[Columns]
    """Alternatives of columns, those with more optional ones first."""
    label_columns: ClassVar[frozenset[str]]
    """Columns that rows to predict on need not have."""
    outcome_columns: ClassVar[frozenset[str] | None] = None
    """Those of them that say what is to be found out, where the others are read in training; None = all."""
    optional_columns: ClassVar[frozenset[str]] = frozenset()
    """Columns that a row may have without a value."""
    text_column: ClassVar[str | None] = "text"
    """What a line of plain text is to the task; None = a line of text is no row of it."""
    learned: ClassVar[dict[str, Any]] = {}
    """Settings that the training rows fill in where they have these values."""
    can: ClassVar[frozenset[Capability]] = frozenset()
    if TYPE_CHECKING:
        name: str

    @property
    def roles(self) -> Columns:
        """The alternatives of columns with these settings."""
        return self.columns

    @property
    def may_be_empty(self) -> frozenset[str]:
        """Columns that a row may have without a value, with these settings."""
        return self.optional_columns

    @property
    def input_columns(self) -> frozenset[str]:
        """Columns that the model reads; the others are what it is to find out."""
        outcomes = self.label_columns if self.outcome_columns is None else self.outcome_columns
        return frozenset(role for alternative in self.columns for role in alternative) - outcomes


class TextSettings(TaskSettings):
    """What all text tasks share."""

    max_length: PositiveInt | None = None
    """Longest sample in tokens; null = the model's own limit (at most 2048)."""
    too_long: Literal["truncate", "drop", "raise"] = "truncate"
    """What happens to a longer sample; each is counted in the data report."""


class ClassNames(TaskSettings):
    """Classes and their numbers."""

    learned: ClassVar[dict[str, Any]] = {"labels": None, "label_ids": None}
    labels: Labels = None
    """Class names in the order of their ids, or numbers that the files write to names, e.g. {0: repair}, or a text file
    with a name a line (JSON: a list or a mapping); null = those of the training data, sorted."""
    label_ids: tuple[int, ...] | None = None
    """Numbers that stand for `labels` in the files, in their order; null = with `labels` that are no numbers
    themselves 0, 1, 2, ..., else none."""

    @model_validator(mode="before")
    @classmethod
    def _number_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("labels") is None or "label_ids" in data:
            return data
        try:
            names, ids = names_and_ids(data["labels"])
        except ValueError:  # told where the field itself is read
            return data
        return {**data, "labels": names, "label_ids": ids}

    @model_validator(mode="after")
    def _as_many_numbers(self) -> ClassNames:
        if self.label_ids is not None and len(self.label_ids) != len(self.labels or ()):
            raise ValueError(
                f"label_ids has {len(self.label_ids)} numbers for {len(self.labels or ())} labels; make it null"
            )
        return self


class GenerationSettings(Section):
    """Text generated in evaluation."""

    max_new_tokens: PositiveInt = 64
    """Longest generated text in tokens."""
    num_beams: PositiveInt = 1
    """Beam width; 1 = greedy."""
    options: dict[str, Any] = {}
    """Fields of transformers' GenerationConfig that say which tokens may follow, over the model's own, e.g.
    `{repetition_penalty: 1.0, min_length: 0, forced_bos_token_id: null}`."""
