"""Requests to stop, by signal or by the end of the job's time: handlers set a flag, and all ranks agree upon it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ftscale.base.signals import STOP_SIGNALS, heeded

END_VARIABLES = ("FTSCALE_END_TIME", "SLURM_JOB_END_TIME")
"""Where a launcher says when the job's time is over, in seconds since 1970."""


STANDARD_STREAMS = (1, 2)


class Interrupted(Exception):
    """A request to stop, where there is nothing to finish first."""


class StopRequest:
    """Whether this process was asked to stop, and by what. Handlers are installed by `listen`.

    While `at_once` is set, a signal raises Interrupted where it arrives: nothing has been begun that could be lost,
    and no other process waits in a collective. Else it is only noted.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """The signal's name, or "time limit"; None = not asked."""
        self.at_once = True
        self.listens = True
        """Whether signals are noticed."""
        self._deadline: float | None = None
        self._terminals: list[int] = []
        """Descriptors of the standard streams that were a terminal when this began to listen."""

    def set_deadline(self, before_end_s: float) -> None:
        """Ask for a stop so many seconds before the end that the launcher names; 0 = never.

        The distance is taken once: setting the clock afterwards changes nothing.
        """
        ends = [float(os.environ[name]) for name in END_VARIABLES if os.environ.get(name, "").isdigit()]
        if before_end_s and ends:
            self._deadline = time.monotonic() + min(ends) - before_end_s - time.time()

    def __bool__(self) -> bool:
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "time limit"
        return self.reason is not None

    def listen(self) -> dict[signal.Signals, signal._HANDLER]:
        """Notice the signals from now on; returns the handlers that stood before."""
        self._terminals = [stream for stream in STANDARD_STREAMS if os.isatty(stream)]
        return {number: signal.signal(number, self._note) for number in heeded(STOP_SIGNALS)}

    def release(self) -> None:
        """Signals end this process again: there is nothing left to finish."""
        for number in heeded(STOP_SIGNALS):
            signal.signal(number, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.reason = signal.Signals(number).name
        if number == signal.SIGHUP:
            self._forget_lost_terminals()
        if self.at_once:
            self.at_once = False  # a second signal must not interrupt what cleans up after the first
            raise Interrupted(self.reason)

    def _forget_lost_terminals(self) -> None:
        """Writing to a terminal that is gone ends in an error; what there is to say stands in the run's logs."""
        for stream in self._terminals:
            if not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Notice SIGTERM, SIGUSR1, SIGINT and SIGHUP while inside; the handlers that stood before come back after.

    In another thread than the main one signals are not noticed: Python handles them in the main thread alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        request.listens = False
        yield request
        return
    before = request.listen()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
