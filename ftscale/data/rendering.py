"""A chat template is a program that came with a model: what it may take of time and memory to write a conversation."""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType

MOST_CPU_S = 10.0
"""Processor time of this thread for one conversation; templates take milliseconds."""
MOST_MEMORY = 2**29
"""Bytes that the process may grow by meanwhile."""
MOST_CHARACTERS = 10_000_000
"""Characters of a conversation as the template writes it; as many as a row may have."""


class TooMuch(Exception):
    """What a template asks for too much of; the message goes on from "it"."""


@contextmanager
def bounded_rendering(template: str) -> Iterator[None]:
    """Let the template be rendered inside the `with`, in bounds.

    Nothing of a template is told before it runs: loops inside loops, `'a' * 2**31`, a macro that calls itself twice.
    Only the time outside the main thread is without a bound, because signals reach that one alone.
    Raises TooMuch.
    """
    if _has_powers(template):
        raise TooMuch("has a power (**), which can take hours and is not interrupted")
    try:
        with _bounded_memory(), _bounded_time():
            yield
    except MemoryError as error:
        raise TooMuch(f"takes more than {MOST_MEMORY} bytes of memory") from error


def check_rendered(text: str) -> None:
    """Raise TooMuch for a text that no tokenizer takes at once."""
    if len(text) > MOST_CHARACTERS:
        raise TooMuch(f"writes {len(text)} characters, and {MOST_CHARACTERS} are the most")


@contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", "rb") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    bound = now + MOST_MEMORY
    if soft != resource.RLIM_INFINITY and soft < bound:  # the user's own is narrower
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _bounded_time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    begun = time.thread_time()

    def look(number: int, frame: FrameType | None) -> None:
        if time.thread_time() - begun > MOST_CPU_S:  # the timer counts the other threads too
            raise TooMuch(f"takes more than {MOST_CPU_S:g} s of the processor")

    before = signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_CPU_S / 10, MOST_CPU_S / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@lru_cache(maxsize=64)
def _has_powers(template: str) -> bool:
    """Whether `**` stands between two values; before the arguments of a call it is something else."""
    from jinja2 import Environment

    before = ""
    for _, kind, value in Environment(autoescape=True).lex(template):
        if kind == "operator" and value == "**" and before not in ("(", ","):
            return True
        if kind != "whitespace":
            before = value
    return False
