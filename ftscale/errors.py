"""Errors of two kinds: the user's mistake (exit 2, no traceback) and a fault of the program (exit 1)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from ftscale.shown import shown

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run me again


class UserError(Exception):
    """A mistake that the user can mend: each problem names the setting, its value, the rule and the fix.

    `problems`: one sentence or more, reported together, as `shown` gives them.
    """

    def __init__(self, *problems: str) -> None:
        assert problems
        self.problems = tuple(map(shown, problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self):  # so that it crosses process boundaries whole
        return (type(self), self.problems)


def unknown_name(setting: str, value: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table, with the nearest known one."""
    names = sorted(known)
    close = get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}."
    return f"{setting} = {value!r} is not known; {hint}"
