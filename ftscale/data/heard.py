"""What reading files says: once in a process, and again at each start that takes what was read from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from ftscale.base.logs import log

_heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)


def say(sentence: str) -> None:
    """Warn, where this process has not said it yet; whoever listens hears it each time."""
    heard = _heard.get()
    if heard is not None and sentence not in heard:
        heard.append(sentence)
    say_once(sentence)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Inside, what is said is added to the list, each sentence once."""
    found: list[str] = []
    token = _heard.set(found)
    try:
        yield found
    finally:
        _heard.reset(token)


@lru_cache(maxsize=1024)
def say_once(sentence: str) -> None:
    """Warn, where this process has not said it yet."""
    log.warning("%s", sentence)
