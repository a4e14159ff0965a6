"""25 kills of real runs on two processes, at random instants; each run must end as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import chaos

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]

EACH = 5
STEPS = 60  # half of the campaign's: enough for five kills, each within 3 s of a start's first step
CASES = ("ddp-map-lora", "ddp-stream-full", "zero1-map-adamw_8bit", "zero2-stream-lora", "zero3-map-full")


def faults(case: str) -> tuple[str, ...]:
    """Another five of the faults for each case: all of them twice, but one."""
    names, first = list(chaos.FAULTS), CASES.index(case) * EACH
    return tuple((names * 2)[first : first + EACH])


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_five_times_ends_as_if_it_had_not_been(shared: Path, tmp_path: Path, case: str):
    if os.geteuid():
        pytest.skip("a small file system to fill can be mounted by root alone")
    done = chaos.run_case(case, tmp_path / "work", kills=EACH, seed=0, faults=faults(case), num_steps=STEPS)
    chaos.show(done)
    assert len(done.kills) == EACH
    assert done.completed
    assert {name: getattr(done, name) for name in chaos.WRONG} == dict.fromkeys(chaos.WRONG, 0)


def test_every_fault_is_among_them():
    assert {fault for case in CASES for fault in faults(case)} == set(chaos.FAULTS)
