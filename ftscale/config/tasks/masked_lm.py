"""Settings of masked language modelling."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from ftscale.config.section import Fraction
from ftscale.config.tasks.base import Capability, Columns, TextSettings


class MaskedLMSettings(TextSettings):
    """The hidden tokens of a text (`text`), by what stands before and behind them."""

    columns: ClassVar[Columns] = (("text",),)
    label_columns: ClassVar[frozenset[str]] = frozenset()
    can: ClassVar[frozenset[Capability]] = frozenset({"flat_rows", "gives_logits"})
    name: Literal["masked_lm"] = "masked_lm"
    """The task."""
    mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of a sample's tokens (of its words with `whole_words`) that are targets; one at least."""
    whole_words: bool = False
    """Draw whole words, as the tokenizer parts them, instead of single tokens."""
    mask_replace_ratio: Fraction = 0.8
    """Share of the targets in whose place the model reads the mask token."""
    random_replace_ratio: Fraction = 0.1
    """Share of the targets in whose place it reads a random token; the others it reads as they are."""
    join_texts: bool = False
    """Lay texts end to end, a separator token between two, and cut them into samples of `max_length`."""
    top_k: PositiveInt = 5
    """Tokens that a prediction gives for each mask, the likeliest ones."""

    @model_validator(mode="after")
    def _no_more_than_all(self) -> MaskedLMSettings:
        if self.mask_replace_ratio + self.random_replace_ratio > 1:
            raise ValueError(
                f"mask_replace_ratio = {self.mask_replace_ratio} and random_replace_ratio = "
                f"{self.random_replace_ratio} are shares of the same targets and must be at most 1 together; lower one"
            )
        return self
