"""Lines as fastText writes them, whose labels stand in front of the text: `__label__good best bread in town`."""

from __future__ import annotations

import re
from collections.abc import Sequence

MARK = "__label__"
ONE = r"__label__(?P<label>\S+) (?P<text>.+)"
SEVERAL = r"(?P<label>(?:__label__\S+ )+)(?P<text>.+)"
"""Patterns for lines of one label, and of several, which keep their mark."""


def pattern_of(lines: Sequence[str]) -> str | None:
    """Return the pattern by which lines are read; None where they have no labels in front.

    Lines that are not blank; each must fit, since a run refuses those that do not.
    """
    if not all(re.fullmatch(SEVERAL, line) for line in lines):
        return None
    return SEVERAL if any(line.split(" ", 2)[1].startswith(MARK) for line in lines) else ONE
