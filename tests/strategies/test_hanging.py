"""Ranks do not wait for ever for each other: for one that hangs, and for one whose disk is full in a save."""

from __future__ import annotations

import json
from pathlib import Path

import launching
import pytest
from strategies import jobs

WORKER = Path(__file__).with_name("hanging_worker.py")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # DeepSpeed may compile first, minutes


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_the_others_wait_no_longer_than_they_are_told(strategy: str, tmp_path: Path):
    job = {"strategy": strategy, "timeout_s": 5, "out": str(tmp_path / "waited")}
    done = launching.try_to_launch(WORKER, [job], processes=2, work=tmp_path)
    assert done.returncode == 1
    assert float((tmp_path / "waited").read_text()) < 60  # DeepSpeed by itself: 1,800


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_rank_that_cannot_write_leaves_no_other_one_waiting(strategy: str, tmp_path: Path):
    job = {"strategy": strategy, "timeout_s": 60, "out": str(tmp_path / "failed"), "folder": str(tmp_path / "save")}
    launching.launch(WORKER, [job], processes=2, work=tmp_path)
    assert json.loads((tmp_path / "failed").read_text()) == [True, False]


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
