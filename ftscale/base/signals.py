"""Signals by which a run is asked to stop, and processes that end with their parents: none is left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""By which a run is asked to stop; SIGHUP when its terminal goes away."""
LAUNCHER_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""What a launcher hands on to its processes: torchrun's own, and the one that asks for a checkpoint."""

_PR_SET_PDEATHSIG = 1  # prctl(2)


def heeded(numbers: Sequence[signal.Signals]) -> list[signal.Signals]:
    """The signals without SIGHUP where nohup started this process: it goes on without its terminal."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if not (ignored and number == signal.SIGHUP)]


def stop_with_launcher() -> None:
    """Have SIGTERM sent here when torchrun's agent dies: its workers then end in a checkpoint and not as orphans.

    Does nothing outside Linux and under other launchers.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _signal_on_death_of_parent(signal.SIGTERM)


def leave_signals_to_parent() -> None:
    """Leave requests to stop to the parent of this worker process, which ends when its parent does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _signal_on_death_of_parent(signal.SIGKILL)


def _signal_on_death_of_parent(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
