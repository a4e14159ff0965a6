"""Settings of reranking."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ftscale.config.tasks.base import Capability, Columns, TextSettings


class RerankingSettings(TextSettings):
    """How well a text answers a query (`anchor`, `positive`, `negative`, or `text`, `text_pair`, `score`)."""

    columns: ClassVar[Columns] = (
        ("anchor", "positive", "negative"),
        ("anchor", "positive"),
        ("text", "text_pair", "score"),
    )
    label_columns: ClassVar[frozenset[str]] = frozenset({"negative", "score"})
    outcome_columns: ClassVar[frozenset[str] | None] = frozenset({"score"})
    optional_columns: ClassVar[frozenset[str]] = frozenset({"negative"})
    text_column: ClassVar[str | None] = None
    learned: ClassVar[dict[str, Any]] = {"loss": None}
    can: ClassVar[frozenset[Capability]] = frozenset({"flat_rows", "brings_head"})
    name: Literal["reranking"] = "reranking"
    """The task."""
    loss: Literal["listwise", "pointwise"] | None = None
    """What is learned: to put the positive before the negatives of its row (listwise), or how likely each text is right
    for its query, by itself (pointwise; scores are from 0 to 1); null = by the columns of the rows: pointwise for
    scores."""
