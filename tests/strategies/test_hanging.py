"""Ranks do not wait for ever for each other: for one that hangs, and for one whose disk is full in a save."""

from __future__ import annotations

import json
from pathlib import Path

import launching
import pytest

WORKER = Path(__file__).with_name("hanging_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_the_others_wait_no_longer_than_they_are_told(strategy: str, tmp_path: Path):
    job = {"strategy": strategy, "timeout_s": 5, "out": str(tmp_path / "waited")}
    done = launching.try_to_launch(WORKER, [job], processes=2, work=tmp_path, timeout_s=150)
    assert done.returncode == 1
    assert float((tmp_path / "waited").read_text()) < 60  # DeepSpeed by itself: 1,800


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_a_rank_that_cannot_write_leaves_no_other_one_waiting(strategy: str, tmp_path: Path):
    job = {"strategy": strategy, "timeout_s": 60, "out": str(tmp_path / "failed"), "folder": str(tmp_path / "save")}
    launching.launch(WORKER, [job], processes=2, work=tmp_path, timeout_s=150)
    assert json.loads((tmp_path / "failed").read_text()) == [True, False]
