"""What is not sure of a file of rows: asked where somebody can answer, else assumed and written down."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ftscale.base.errors import UserError
from ftscale.base.shown import visible

SHOWN = 60
"""Characters of an example."""


class Option(NamedTuple):
    """An answer that a question may have."""

    name: str
    about: str = ""
    """An example, or what follows from it."""


Ask = Callable[[str, Sequence[Option], str], str]
"""Takes a question, its answers and the one that is assumed; gives the name of one of them."""


class Doubts:
    """Settles each doubt by a question, or by the likeliest answer and a note of it."""

    def __init__(self, ask: Ask | None = None) -> None:
        self.ask = ask
        """None = nobody answers here."""
        self.notes: list[str] = []
        """What was assumed and what could be otherwise, a sentence each."""

    def note(self, sentence: str) -> None:
        """Write down what could be otherwise, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def settle(self, question: str, *, options: Sequence[Option], default: str, note: str | None) -> str:
        """Return the name of an option: the answer, else `default`. `note`: the sentence on that; None = none."""
        if self.ask is not None and len(options) > 1:
            return self.ask(question, options, default)
        if note is not None:
            self.note(note)
        return default


def on_terminal(*, yes: bool) -> Ask | None:
    """Return the way to ask where a person sits at the terminal. `yes`: they want no questions."""
    return None if yes or not (sys.stdin.isatty() and sys.stdout.isatty()) else ask


def ask(question: str, options: Sequence[Option], default: str) -> str:
    """Ask on the terminal until one of the options is given; an empty line is the default."""
    from rich.console import Console
    from rich.prompt import Prompt

    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n{visible(question)}")
    width = max(len(option.name) for option in options)
    for option in options:
        console.print(f"  {option.name:{width}}  {shortened(option.about)}".rstrip())
    names = [option.name for option in options]
    try:
        return Prompt.ask("answer", console=console, choices=names, show_choices=False, default=default)
    except EOFError as error:
        raise UserError("the terminal was closed before the question was answered; --yes asks none.") from error


def shortened(value: object) -> str:
    """Return the beginning of a value in one line."""
    text = " ".join(visible(str(value)).split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
