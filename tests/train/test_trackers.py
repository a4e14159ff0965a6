"""Figures reach trackers, and a tracker that fails or hangs ends no run and holds none up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftscale.base.logs import log
from ftscale.train import trackers as module
from ftscale.train.tracker_kinds import TrackedRun, Tracker
from ftscale.train.trackers import Trackers

RUN = TrackedRun(Path("trackers"), "0123456789abcdef", None, "mine", None, (), {}, 0)


class Notes(Tracker):
    """Keeps what it is told; raises where it is asked to."""

    def __init__(self, name: str, *, fails_at: str = "") -> None:
        super().__init__(name, {})
        self.told: list[Any] = []
        self.fails_at = fails_at

    def begin(self, run: TrackedRun) -> None:
        self._take("begin", run.name)

    def log(self, values: dict[str, float], *, step: int) -> None:
        self._take("log", (step, values))

    def end(self, status: str) -> None:
        self._take("end", status)

    def _take(self, what: str, value: Any) -> None:
        if what == self.fails_at:
            raise ConnectionError("no route to host\nand much more")
        self.told.append(value)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level(logging.INFO, logger="ftscale"):
        yield caplog


def test_lines_come_in_order_with_their_steps(said: pytest.LogCaptureFixture):
    notes, trackers = Notes("notes"), Trackers()
    trackers.open([notes], RUN)
    for step in (1, 2):
        trackers.log({"loss": 1 / step}, step=step)
    trackers.close("completed")
    assert notes.told == ["mine", (1, {"loss": 1.0}), (2, {"loss": 0.5}), "completed"]
    assert said.messages == []


@pytest.mark.parametrize("moment", ["begin", "log", "end"])
def test_a_tracker_that_fails_is_named_once_and_the_others_get_everything(moment: str, said: pytest.LogCaptureFixture):
    bad, good, trackers = Notes("bad", fails_at=moment), Notes("good"), Trackers()
    trackers.open([bad, good], RUN)
    for step in (1, 2, 3):
        trackers.log({"loss": 1.0}, step=step)
    trackers.close("stopped_early")
    assert len(good.told) == 5
    assert said.messages == [
        "report: bad failed and gets no more lines, the run goes on (ConnectionError: no route to host); metrics.jsonl "
        "has them all"
    ]


@pytest.mark.parametrize("status", ["preempted", "failed", "completed"])
def test_a_tracker_that_hangs_is_not_waited_for_for_long(
    status: str, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
):
    released, trackers = threading.Event(), Trackers()
    waits = {
        "completed": ("WAIT_S", 0.02),
        "preempted": ("WAIT_UNFINISHED_S", 0.01),
        "failed": ("WAIT_UNFINISHED_S", 0.01),
    }
    monkeypatch.setattr(module, *waits[status])

    class Hanging(Notes):
        def begin(self, run: TrackedRun) -> None:
            released.wait()

    trackers.open([Hanging("slow")], RUN)
    trackers.log({"loss": 1.0}, step=1)  # is not held up
    trackers.close(status)
    assert said.messages == ["report: trackers have not taken all lines in 0 s; metrics.jsonl has them all"]
    released.set()


def test_without_trackers_there_is_no_thread():
    before, trackers = threading.active_count(), Trackers()
    trackers.open([], RUN)
    trackers.log({"loss": 1.0}, step=1)
    assert threading.active_count() == before
    trackers.close("completed")
