"""Settings of token classification."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ftscale.config.tasks.base import Capability, ClassNames, Columns, TextSettings


class TokenClassificationSettings(TextSettings, ClassNames):
    """A tag for each word (`words`, `tags`)."""

    columns: ClassVar[Columns] = (("words", "tags"),)
    label_columns: ClassVar[frozenset[str]] = frozenset({"tags"})
    text_column: ClassVar[str | None] = "words"
    learned: ClassVar[dict[str, Any]] = {**ClassNames.learned, "scheme": "auto"}
    can: ClassVar[frozenset[Capability]] = frozenset({"flat_rows", "brings_head", "tags_words"})
    name: Literal["token_classification"] = "token_classification"
    """The task."""
    scheme: Literal["auto", "IOB1", "IOB2", "BIOES"] = "auto"
    """The tag scheme of the files (BIOES is also known as IOBES); auto = recognised. Trained and scored as IOB2."""
