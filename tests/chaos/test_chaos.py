"""Every fault strikes a real run on two processes once, at a random instant; it must end as if nothing had happened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny

from benchmarks import chaos

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

STEPS = 60  # half of the benchmark's: enough for five faults, each within 3 s of a start's first step
CASES = ("ddp-stream-full", "zero2-map-lora", "zero3-map-full")
MORE = ("ddp-map-lora", "zero1-map-adamw_8bit", "zero2-stream-lora")


def faults(case: str) -> tuple[str, ...]:
    """Each of the faults strikes one of the three cases; in the campaign another five strike each of the others."""
    names = list(chaos.FAULTS)
    return tuple(names[CASES.index(case) :: len(CASES)] if case in CASES else (names * 2)[MORE.index(case) * 5 :][:5])


@pytest.mark.parametrize("case", [*CASES, *map(needs.in_campaign, MORE)])
def test_a_run_that_is_struck_again_and_again_ends_as_if_it_had_not_been(shared: Path, tmp_path: Path, case: str):
    if os.geteuid():
        pytest.skip("a small file system to fill can be mounted by root alone")
    struck = faults(case)
    done = chaos.run_case(
        case,
        tmp_path / "work",
        kills=len(struck),
        seed=0,
        faults=struck,
        num_steps=STEPS,
        uninterrupted=run_undisturbed,
    )
    chaos.show(done)
    assert len(done.kills) == len(struck)
    assert done.completed
    assert {name: getattr(done, name) for name in chaos.WRONG} == dict.fromkeys(chaos.WRONG, 0)


def test_every_fault_is_among_them_once():
    assert sorted(fault for case in CASES for fault in faults(case)) == sorted(chaos.FAULTS)


def run_undisturbed(config: dict[str, Any], folder: Path, log: Path, strategy: str) -> None:
    """Forked: nothing strikes it."""
    file = log.with_suffix(".json")
    file.write_text(json.dumps({**config, "run_folder": str(folder)}))
    arguments = ("train", file, f"distributed.strategy={strategy}")
    done = tiny.forked(*arguments, processes=chaos.PROCESSES)
    assert done.code == 0, done.stderr
