"""What a job does next, for every way in which a start can end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftscale.cluster.outcome import Facts, Verdict, bounded, judge, judge_nodes
from ftscale.cluster.step import Allocation, Step

OWN = {"rank": 3, "host": "n2", "error": "ValueError: no", "exit_code": 1, "peer_lost": False}
LOST = {"rank": 0, "host": "n1", "error": "Connection closed by peer", "exit_code": 1, "peer_lost": True}


@pytest.mark.parametrize(
    ("facts", "action", "code", "reason"),
    [
        (Facts(status="completed"), "done", 0, "completed"),
        (Facts(status="stopped_early", signal="SIGUSR1"), "done", 0, "stopped_early"),
        (Facts(status="preempted", signal="SIGUSR1", cause="time limit"), "again", 75, "time limit, saved"),
        (Facts(status="preempted", signal="SIGUSR1", cause="preempted"), "again", 75, "preempted, saved"),
        (Facts(signal="SIGUSR1", cause="time limit", exit_code=143), "again", 75, "time limit, not saved"),
        (Facts(status="preempted"), "again", 75, "asked to stop, saved"),
        (Facts(exit_code=75), "again", 75, "asked to stop, not saved"),
        (Facts(status="preempted", signal="SIGTERM"), "leave", 75, "ended by Slurm (scancel or requeue), saved"),
        (Facts(signal="SIGTERM", lost_nodes=("n2",)), "leave", 75, "ended by Slurm (n2 down), not saved"),
        (Facts(signal="SIGTERM", cause="time limit"), "again", 75, "time limit, not saved"),
        (Facts(status="preempted", signal="SIGUSR1", cancelled=True), "stop", 75, "cancelled, saved"),
        (Facts(exit_code=143, failure=OWN), "stop", 1, "rank 3 on n2: ValueError: no"),
        (Facts(exit_code=143, failure={**OWN, "exit_code": 2}), "stop", 2, "rank 3 on n2: ValueError: no"),
        (Facts(exit_code=2), "stop", 2, "a mistake in the configuration or the data, see above"),
        (Facts(exit_code=9), "stop", 9, "the step ended with code 9, see above"),
        (Facts(exit_code=1, failure=LOST), "again", 1, "rank 0 on n1 lost another process"),
        (Facts(silent_s=1800, exit_code=137), "again", 1, "nothing written for 1800 s (every rank waits)"),
    ],
)
def test_each_cause_has_its_verdict(facts: Facts, action: str, code: int, reason: str):
    verdict = judge(facts)
    assert (verdict.action, verdict.exit_code, verdict.reason) == (action, code, reason)
    assert verdict.leave_out == ()


@pytest.mark.parametrize(
    "facts",
    [
        Facts(exit_code=1, failure=LOST, lost_nodes=("n2",)),
        Facts(exit_code=1, failure=LOST, killed=(("n2", "Killed"),)),
        Facts(exit_code=1, failure=LOST, lost_peer="n2"),
        Facts(exit_code=137, silent_s=60, silent_nodes=("n2",)),
    ],
)
def test_a_node_that_is_at_fault_is_left_out(facts: Facts):
    verdict = judge(facts)
    assert (verdict.action, verdict.leave_out, verdict.counts) == ("again", ("n2",), True)
    assert "n2" in verdict.reason


def test_an_error_of_a_rank_is_no_fault_of_a_node():
    facts = Facts(exit_code=137, failure=OWN, killed=(("n1", "Killed"),), silent_s=60, silent_nodes=("n1",))
    assert judge(facts).action == "stop"


def test_a_minority_of_bad_nodes_is_left_out_and_a_majority_stops_the_job():
    assert judge_nodes({}, nodes=["n1", "n2"]) is None
    one = judge_nodes({"n2": ["its disk is full"]}, nodes=["n1", "n2", "n3"])
    assert one is not None
    assert (one.action, one.leave_out, one.counts) == ("again", ("n2",), False)
    two = judge_nodes({"n2": ["a"], "n3": ["b", "c"]}, nodes=["n1", "n2", "n3"])
    assert two is not None
    assert (two.action, two.exit_code) == ("stop", 1)
    assert two.reason == "2 of 3 nodes fail the health check (n2: a; n3: b, c)"


AGAIN = Verdict("again", "n2 down", 1, ("n2",), counts=True)


def ended(*, progress: int, counts: bool = True) -> dict[str, object]:
    return {"reason": "n1 down", "progress": progress, "counts": counts}


@pytest.mark.parametrize(
    ("before", "progress", "stops"),
    [
        ([], 0, False),
        ([ended(progress=0)], 5, False),
        ([ended(progress=5)], 0, False),
        ([ended(progress=0)], 0, True),
        ([ended(progress=0), ended(progress=0, counts=False)], 0, True),  # a preemption between is no progress
        ([ended(progress=5)] * 3, 5, True),  # the third restart was the last
    ],
)
def test_restarts_are_bounded(before: list[dict[str, object]], progress: int, stops: bool):
    verdict = bounded(AGAIN, before=before, progress=progress, max_restarts=3)
    assert (verdict.action == "stop") is stops
    assert verdict.reason.startswith("n2 down")
    assert verdict.exit_code == 1


def test_a_preemption_without_progress_is_not_held_against_the_run():
    preempted = Verdict("again", "preempted, saved", 75)
    assert bounded(preempted, before=[ended(progress=0)], progress=0, max_restarts=3) == preempted


@pytest.mark.parametrize(
    ("lines", "code", "killed"),
    [
        ([], 9, ()),  # srun's own
        (["n2: task 3: Exited with exit code 1", "n1: task 0: Terminated"], 1, ()),
        (["n2: tasks 2-3: Killed", "n1: task 0: Exited with exit code 1"], 9, (("n2", "Killed"),)),
        (["n2: task 1: Exited with exit code 137"], 9, (("n2", "Killed"),)),
        (["n2: task 1: Out Of Memory"], 9, (("n2", "Out Of Memory"),)),
        (["n2: task 1: Terminated"], 9, ()),
    ],
)
def test_the_first_task_that_ended_tells_code_and_node(
    lines: list[str],
    code: int,
    killed: tuple[tuple[str, str], ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    said = "".join(f"srun: error: {line}\n" for line in lines)
    srun = tmp_path / "srun"
    srun.write_text(f"#!/bin/sh\nprintf '%s' '{said}' >&2\nexit 9\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    allocation = Allocation(job="1", restart=0, nodes=["n1", "n2"], cpus=4, gpus=2)
    step = Step(allocation, ["train"], name="train", tasks_per_node=2, environment={})
    step.process.wait()
    assert step.first_end() == (code, killed)
    assert capfd.readouterr().err == said
