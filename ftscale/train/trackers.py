"""Figures for trackers, handed over by a thread of its own: one that fails or hangs ends no run and holds none up."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ftscale.base.logs import log
from ftscale.train.tracker_kinds import FAILED, PREEMPTED, TrackedRun, Tracker

WAIT_S = 60.0
"""For trackers to take the last lines when a run has ended; of one that goes over the network, its answer."""
WAIT_UNFINISHED_S = 10.0
"""The same where the run was stopped, whose process may be killed soon, or has failed, for which other ranks wait."""


class Trackers:
    """Gives each line to all trackers, in order; does nothing until it is opened, on rank 0 alone.

    All of them are called in one thread: mlflow and trackio keep their run for a thread, and what one of them does with
    stdout meets no other's. A tracker that has failed gets no more lines in this start.
    """

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[tuple[dict[str, float], int] | str] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self, trackers: Sequence[Tracker], run: TrackedRun) -> None:
        """Begin the run with each tracker, or go on with it, while training begins."""
        if trackers:
            work = partial(self._work, trackers, run)
            self._thread = threading.Thread(target=work, name="trackers", daemon=True)
            self._thread.start()

    def log(self, figures: Mapping[str, float], *, step: int) -> None:
        """Have figures of an optimizer step reported."""
        if self._thread is not None:
            self._lines.put((dict(figures), step))

    def close(self, status: str) -> None:
        """Have the run ended with each tracker, and wait for that, but not for long. `status`: as in result.json."""
        if self._thread is None:
            return
        self._lines.put(status)
        wait_s = WAIT_UNFINISHED_S if status in (PREEMPTED, FAILED) else WAIT_S
        self._thread.join(wait_s)
        if self._thread.is_alive():
            log.warning("report: trackers have not taken all lines in %.0f s; metrics.jsonl has them all", wait_s)
        self._thread = None

    def _work(self, trackers: Sequence[Tracker], run: TrackedRun) -> None:
        at_work = [tracker for tracker in trackers if _tried(tracker, partial(tracker.begin, run))]
        while not isinstance(line := self._lines.get(), str):
            values, step = line
            at_work = [tracker for tracker in at_work if _tried(tracker, partial(tracker.log, values, step=step))]
        for tracker in at_work:
            _tried(tracker, partial(tracker.end, line))


def _tried(tracker: Tracker, call: Callable[[], None]) -> bool:
    """Whether the tracker did it; what it raises, whatever it is, is said and goes no further."""
    try:
        call()
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        log.warning(
            "report: %s failed and gets no more lines, the run goes on (%s); metrics.jsonl has them all",
            tracker.name,
            what,
        )
        return False
    return True
