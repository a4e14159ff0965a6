"""Ranks do not wait for ever for each other: for one that hangs, and for one whose disk is full in a save."""

from __future__ import annotations

import json
from pathlib import Path

import launching
import needs
import pytest
from strategies import jobs

WORKER = Path(__file__).with_name("hanging_worker.py")

pytestmark = pytest.mark.slow
PATIENCE_S = 20  # of a collective of two ranks that are forked together


@pytest.mark.parametrize("strategy", ["ddp", "zero3", *map(needs.in_campaign, ["zero1", "zero2"])])
def test_the_others_wait_no_longer_than_they_are_told(strategy: str, tmp_path: Path):
    job = {"strategy": strategy, "timeout_s": PATIENCE_S, "out": str(tmp_path / "gave_up")}
    done = launching.try_to_launch(WORKER, [job], processes=2, work=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "gave_up").read_text() == "rank 0, step 1", done.stderr  # while the other one still hung


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "zero2_offload"])
def test_a_rank_that_cannot_write_leaves_no_other_one_waiting(strategy: str, tmp_path: Path):
    job = {"strategy": strategy, "timeout_s": 60, "out": str(tmp_path / "failed"), "folder": str(tmp_path / "save")}
    launching.launch(WORKER, [job], processes=2, work=tmp_path)
    found = json.loads((tmp_path / "failed").read_text())
    assert found["failed_on"] == [True, False]
    # what DeepSpeed has compiled for this strategy is what its ranks wait for (tests/distributed/test_runtime.py)
    offloads = strategy == "zero2_offload"
    assert found["operators"] == ["cpu_adam"] * offloads + ["deepspeed_shm_comm"]


def test_ranks_that_see_a_folder_at_different_moments_do_the_same(shared: Path, tmp_path: Path):
    config = jobs.captions(
        shared,
        tmp_path,
        train={"max_steps": 2},
        checkpoint={"every": 1, "keep": 9, "prove": "never"},
        run_folder=str(tmp_path / "whole"),
        distributed={"strategy": "ddp", "timeout_s": 60},
    )
    launching.launch(WORKER, [{"config": config}], processes=2, work=tmp_path)
    assert jobs.losses(tmp_path / "half") == pytest.approx(jobs.losses(tmp_path / "whole"), rel=1e-6)
