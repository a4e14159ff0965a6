"""Every fault strikes a real run on two processes once, at a random instant; it must end as if nothing had happened."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import forks
import needs
import pytest
import tiny

from benchmarks import chaos

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

STEPS = 60 if needs.ALL else 24  # fewer than the benchmark's: enough for five faults, each soon after a first step
CASES = ("ddp-stream-full", "zero2-map-lora", "zero3-map-full")
MORE = ("ddp-map-lora", "zero1-map-adamw_8bit", "zero2-stream-lora")


FAULTS = list(chaos.FAULTS)[:13]  # those that strike between steps; the phases, and faults of a disk, in the campaign


def strikes(case: str) -> list[tuple[str, str]]:
    """Each of the faults strikes one of the three cases; in the campaign each of the others is struck in its phases."""
    if case in CASES:
        return [(chaos.INSTANT, fault) for fault in FAULTS[CASES.index(case) :: len(CASES)]]
    return chaos.deal(0)[case][:5]


@pytest.mark.parametrize("case", [*CASES, *map(needs.in_campaign, MORE)])
def test_a_run_that_is_struck_again_and_again_ends_as_if_it_had_not_been(shared: Path, tmp_path: Path, case: str):
    if os.geteuid():
        pytest.skip("a small file system to fill can be mounted by root alone")
    struck = strikes(case)
    done = chaos.run_case(
        case,
        tmp_path / "work",
        strikes=struck,
        seed=0,
        num_steps=STEPS,
        start_quickly=None if forks.real_starts() else start_forked,
    )
    chaos.show(done)
    assert len(done.kills) == len(struck)
    assert done.unmet == 0
    assert done.completed
    assert {name: getattr(done, name) for name in chaos.WRONG} == dict.fromkeys(chaos.WRONG, 0)


def test_every_fault_is_among_them_once():
    assert sorted(fault for case in CASES for _, fault in strikes(case)) == sorted(FAULTS)


def test_every_fault_is_dealt_in_every_phase_once():
    dealt = chaos.deal(0)
    pairs = [pair for case, some in dealt.items() if not chaos.changing(case) for pair in some]
    assert sorted(pairs) == sorted(itertools.product(chaos.PHASES, chaos.FAULTS))
    changing = [fault for case, some in dealt.items() if chaos.changing(case) for _, fault in some]
    assert sorted(changing) == sorted(chaos.FAULTS)


def start_forked(
    config: dict[str, Any], folder: Path, log: Path, *, strategy: str, processes: int = chaos.PROCESSES, **_: Any
) -> forks.Launch:
    """As chaos.start, without the start of an interpreter."""
    return forks.start_ranks(
        "ftscale",
        chaos.arguments(config, folder, log, strategy=strategy),
        environment={**os.environ, **tiny.environment()},
        output=log,
        processes=processes,
    )
