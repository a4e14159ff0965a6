"""A prepared row: what the model reads, what it is to find, and what is counted of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LABEL, NOTE, COST, WHERE, ROWS, HASHES = "_label", "_note", "_cost", "_where", "_rows", "_hashes"
COUNT, GROUP = "_count_", "_group_"
"""Names of stored columns; all others are inputs, whose names do not begin with an underscore. Behind COUNT comes the
name of a term of the loss, behind GROUP that of a column of the user's."""


@dataclass
class Sample:
    """A prepared row, or a part of one, or a piece of several.

    Stored samples have equal fields throughout a data set: what one has, all have.
    """

    inputs: dict[str, Any] = field(default_factory=dict)
    """What `collate` makes the model's inputs of: lists and numbers, bytes, and places of files, whose names end in
    `_path`: they may differ between machines."""
    label: Any = None
    """What the model is to find: a number, a list of numbers; None where that is not known."""
    note: Any = None
    """A plain value that evaluation and prediction read, and training does not."""
    cost: int = 1
    """What micro-batches are cut by: tokens, or 1 for each image."""
    counts: dict[str, int] | None = field(default_factory=dict)
    """Targets by the name of the loss's term; None where they are known in the batch only."""
    rows: tuple[int, int] | None = None
    """The rows [first, stop) that it is made of, counted from the first of those that were prepared together; None =
    the one in its own place."""
    drop: str = ""
    """Why it is left out ("too_long", "no_target", ...); "" = it is kept."""
    truncated: bool = False
    """Whether a part of it was cut off."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the data report adds up (`data.prepare.SourceReport`); `hashes`, two int64 of its content, are stored."""
    groups: dict[str, str] = field(default_factory=dict)
    """What `evaluation.groups` names of its row; of several rows that differ, "several"."""
    where: str = ""
    """File and line of its row, or of its first and last."""
    number: int = -1
    """In its data set; set where it is read again, as `epoch`, `seed` and `repeat` are."""
    epoch: int = 0
    seed: int = 0
    repeat: int = 0
    """How often its row came before in the same optimizer step."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What was computed of it before the step, arrays by name; nothing of it is an input of the model."""

    @property
    def targets(self) -> int:
        """Targets of the first term, by which global batches in targets are counted."""
        return next(iter(self.counts.values()), 0) if self.counts else 0

    def stored(self) -> dict[str, Any]:
        """Its columns in a prepared data set."""
        columns = {**self.inputs, COST: self.cost, WHERE: self.where}
        columns |= {f"{COUNT}{name}": count for name, count in (self.counts or {}).items()}
        columns |= {f"{GROUP}{name}": value for name, value in self.groups.items()}
        optional = {LABEL: self.label, NOTE: self.note, ROWS: self.rows, HASHES: self.facts.get("hashes")}
        return columns | {name: value for name, value in optional.items() if value is not None}

    @classmethod
    def of_stored(cls, columns: Mapping[str, Any], *, number: int, epoch: int = 0, seed: int = 0) -> Sample:
        """The sample as it is collated: what was counted of it is left out."""
        inputs = {name: value for name, value in columns.items() if not name.startswith("_")}
        label, note, rows = (columns.get(name) for name in (LABEL, NOTE, ROWS))
        return cls(inputs, label, note, rows=rows, number=number, epoch=epoch, seed=seed)
