"""Processes that start quickly and end with their parents: no worker dies first, and none is left behind."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""By which a run is asked to stop."""

_PR_SET_PDEATHSIG = 1  # prctl(2)


def collect_garbage() -> None:
    """Turn Python's collector on, which the command line puts off, for what is made from here on.

    Called where what lasts begins (reading rows, training, waiting): the libraries' objects are there by then, and
    stay.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def stop_with_launcher() -> None:
    """Have SIGTERM sent here when torchrun's agent dies: its workers then end in a checkpoint and not as orphans.

    Does nothing outside Linux and under other launchers.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _signal_on_death_of_parent(signal.SIGTERM)


def leave_signals_to_parent() -> None:
    """In a worker process: requests to stop are its parent's business, and it ends when its parent does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _signal_on_death_of_parent(signal.SIGKILL)


def _signal_on_death_of_parent(number: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
