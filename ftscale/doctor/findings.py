"""A line of the doctor's, and how a probe that fails becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["ok", "note", "lacking", "broken"]


@dataclass(frozen=True)
class Finding:
    """What one probe found."""

    name: str
    state: State
    """ok; note = as it is, for some uses to know; lacking = some uses need what is not there; broken = nothing can be
    trained."""
    text: str
    fix: str = ""
    """What to do about it; "" = nothing."""
    value: Any = None
    """The same for programs; None = the text says it all."""

    @property
    def line(self) -> str:
        """Say it in one line."""
        text = " ".join(f"{self.text}; {self.fix}".split()) if self.fix else " ".join(self.text.split())
        return f"{self.state:<8} {self.name:<22} {text}"


Probe = Callable[[], Iterator[Finding]]


def ask(name: str, probe: Probe) -> list[Finding]:
    """Return what a probe finds; where it fails itself, that is what it found, and what it told before stays."""
    found: list[Finding] = []
    try:
        found.extend(probe())
    except Exception as error:  # of whatever an odd machine has: the other lines are wanted all the same
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        found.append(Finding(name, "note", f"cannot be told ({said[:200]})", "put this line into a bug report"))
    return found
