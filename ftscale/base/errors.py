"""Errors of two kinds: the user's mistake (exit 2, no traceback) and a fault of the program (exit 1)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from ftscale.base.shown import shown

EXIT_DONE = 0
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run me again


FULL = (errno.ENOSPC, errno.EDQUOT)
SAID_OF_FULL = (*map(os.strerror, FULL), "No usable temporary directory")
"""What stands in the errors of libraries, and of other processes, that met a full disk."""


class UserError(Exception):
    """A mistake that the user can mend: each problem names the setting, its value, the rule and the fix.

    `problems`: one sentence or more, reported together, as `shown` gives them.
    """

    def __init__(self, *problems: str) -> None:
        assert problems
        self.problems = tuple(map(shown, problems))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, ...]]:  # so that it crosses process boundaries whole
        return (type(self), self.problems)


@contextmanager
def told_if_full(fix: Callable[[], str]) -> Iterator[None]:
    """Turns an error of a full disk, whichever library met it, into a UserError. `fix`: what to do, after that."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (said := _said_of_full(error)) is None:
            raise
        raise UserError(f"a disk is full ({said}); {fix()}") from error


@contextmanager
def told_if_too_long() -> Iterator[None]:
    """Turns the system's error for a name that no file can have into a UserError, whoever met it."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = max(str(error.filename).split(os.sep), key=len)
        raise UserError(
            f"{name[:40]}... ({counted(len(name), 'character')}) is longer than the name of a file or folder may be; "
            "give a shorter one."
        ) from error


def _said_of_full(error: BaseException | None) -> str | None:
    """What an error, or one that it was raised for, says of a full disk; None = nothing."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            said = os.strerror(error.errno)
            return f"{said}: {error.filename}" if error.filename else said
        if found := [said for said in SAID_OF_FULL if said in str(error)]:
            return found[0]
        error = error.__cause__ or error.__context__
    return None


def unknown_name(setting: str, value: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table, with the nearest known one; capitals make no difference."""
    names = sorted(known)
    close = nearest(str(value), names)
    hint = f"did you mean {close!r}?" if close is not None else f"known: {', '.join(names)}."
    return f"{setting} = {value!r} is not known; {hint}"


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """The most similar of some names, whatever their capitals; None where none is similar."""
    plain: dict[str, str] = {}
    for known in names:
        plain.setdefault(known.lower(), known)
    close = get_close_matches(name.lower(), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`, `1 process`, `2 processes`: a number with its noun."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"
