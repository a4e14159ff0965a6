"""Settings of text classification."""

from __future__ import annotations

from typing import ClassVar, Literal

from ftscale.config.tasks.base import Capability, ClassNames, Columns, TextSettings


class TextClassificationSettings(TextSettings, ClassNames):
    """Classes, several classes at once, or a number for a text or a pair of texts (`text`, `text_pair`, `label`)."""

    columns: ClassVar[Columns] = (("text", "text_pair", "label"), ("text", "label"))
    label_columns: ClassVar[frozenset[str]] = frozenset({"label"})
    can: ClassVar[frozenset[Capability]] = frozenset({"flat_rows", "brings_head", "embeds"})
    name: Literal["text_classification"] = "text_classification"
    """The task."""
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """One class a row, any number of classes a row (a list, or joined by `label_separator`), or a number."""
    label_separator: str = ","
    """Splits the label column of a multi-label row that is not a list."""

    @property
    def roles(self) -> Columns:
        """Several classes may also stand in a column each."""
        if self.problem != "multi_label":
            return self.columns
        labels = self.labels or ()
        if not labels or set(labels) & {role for alternative in self.columns for role in alternative}:
            return self.columns
        return (*self.columns, *((*alternative[:-1], *labels) for alternative in self.columns))

    @property
    def may_be_empty(self) -> frozenset[str]:
        """A row may have none of several classes."""
        return self.label_columns if self.problem == "multi_label" else self.optional_columns
