"""What a task asks for to be computed of its prepared rows before the first step."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ftscale.models.companion import Companion
from ftscale.tasks.batch import Batch

COLUMN_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclass(frozen=True, eq=False)
class ComputedColumn:
    """A column that a frozen model computes once over prepared rows, and a cache keeps: `Batch.extra[name]`."""

    name: str
    """In `Batch.extra`: letters, digits and underscores."""
    companion: Companion
    """The frozen model, loaded for the time of the computing."""
    compute: Callable[[Companion, Batch], Tensor]
    """Values of a padded batch as evaluation collates it: (samples, ...), of one shape in all batches."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What `compute` depends on besides the task's settings and its own text, JSON-able."""

    def __post_init__(self) -> None:
        assert COLUMN_NAME.fullmatch(self.name), f"a computed column's name is {self.name!r}"

    def identity(self) -> dict[str, Any]:
        """What its values follow from besides the prepared rows, JSON-able."""
        function = inspect.unwrap(self.compute)
        code = inspect.getsource(getattr(function, "__func__", function))
        return {"code": code, "settings": dict(self.settings), "companion": self.companion.identity()}
