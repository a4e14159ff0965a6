"""What a run's state gives to a checkpoint is what it goes on from, and what is not of its kind is told."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftscale.data.stream import StreamPosition
from ftscale.models.adapt import GradientRule
from ftscale.train.state import RunState

POSITION = {"epoch": 1, "block": 2, "used": 3, "rows": 40, "files": [["a", 5]], "ended": [1]}


def state(*, streamed: bool = True, gamma: float = 0.5) -> RunState:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    stream: Any = SimpleNamespace(position=StreamPosition()) if streamed else None
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    schedules: Any = SimpleNamespace(build=lambda: schedule)
    return RunState(schedules, GradientRule(), stream=stream)


def advanced() -> RunState:
    """A state of which nothing is as it was at the start."""
    run = state()
    run.schedule.optimizer.step()
    run.advance_schedule(1.0)
    run.progress.step, run.progress.losses, run.progress.best_metrics = 7, [0.5, 0.25], {"f1": 0.75}
    assert run.stream is not None
    run.stream.position = StreamPosition(**POSITION)
    return run


def test_a_state_goes_on_from_what_another_stored_as_json():
    stored = json.loads(json.dumps(advanced().state_dict()))
    run = state()
    assert run.misfit(stored) == ""
    run.load_state_dict(stored)
    assert run.state_dict() == advanced().state_dict() != state().state_dict()
    assert run.schedule.get_last_lr() == [0.5]
    assert run.stream is not None
    assert run.stream.position == StreamPosition(**POSITION)


def test_the_keys_on_the_disk_are_those_of_every_checkpoint_so_far():
    stored = state(streamed=False).state_dict()
    assert list(stored) == ["loop", "schedule", "stream"]
    assert stored["stream"] is None
    assert advanced().state_dict()["stream"] == POSITION


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda stored: stored.pop("schedule"), "another version of ftscale wrote it"),
        (lambda stored: stored.update(more=1), "another version of ftscale wrote it"),
        (lambda stored: stored["schedule"].pop("last_epoch"), "another version of ftscale wrote it"),
        (lambda stored: stored["loop"].update(step="7"), "its progress is not that of a run: step: "),
        (lambda stored: stored["loop"].update(colour=1), "its progress is not that of a run: colour: "),
        (lambda stored: stored["stream"].update(rows=None), "its progress is not that of a run: rows: "),
        (lambda stored: stored.update(stream=None), "its progress is not that of a run: : "),
    ],
)
def test_a_state_of_another_kind_is_told(change: Any, said: str):
    stored = advanced().state_dict()
    change(stored)
    assert state().misfit(stored).startswith(said)
