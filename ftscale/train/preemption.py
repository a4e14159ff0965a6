"""Signals that ask the run to stop: handlers only set a flag, which all ranks agree upon at the next step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number).name


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Notice SIGTERM, SIGUSR1 and SIGINT while inside; the handlers that stood before come back after."""
    request = StopRequest()
    before = {number: signal.signal(number, request._note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
