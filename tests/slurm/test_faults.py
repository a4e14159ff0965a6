"""One run that everything happens to, one thing after another; it ends as the run that nothing happened to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tiny
from slurm_cluster import Cluster, Job, wait_for

from ftscale.cluster import slurm

STEPS = 240
EVERY = 5

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(2400)]


@dataclass
class Story:
    """The run, and for each thing that happened the start that it ended and the nodes it hit."""

    cluster: Cluster
    job: Job
    starts: dict[str, int] = field(default_factory=dict)
    hit: dict[str, str] = field(default_factory=dict)

    def begin(self, what: str) -> tuple[str, str]:
        """Wait until the next start trains and has a checkpoint of its own; returns its two nodes."""
        number = len(self.starts) + 1
        self.starts[what] = number
        self.job.wait_for_start(number)
        before = self.job.records.events("start")[number - 1]["step"]
        self.job.wait_for_step(before + EVERY + 1, start=number)
        self.job.wait_for_checkpoint(after=before)
        first, second = self.job.nodes
        return first, second

    def end_of(self, what: str) -> dict[str, object]:
        """The record of the start that this ended."""
        return self.job.ends[self.starts[what] - 1]

    def start_after(self, what: str) -> dict[str, object]:
        return self.job.records.events("start")[self.starts[what]]


@pytest.fixture(scope="module")
def story(cluster: Cluster) -> Iterator[Story]:
    """The run is through when the fixture is; the tests look at what it left."""
    run = cluster.run_file("story", steps=STEPS, checkpoint={"every": EVERY, "prove": "never"})
    cluster.submit(run, "--nodes", 2, "--processes", 2, "--partition", "low")
    story = Story(cluster, Job(cluster.folder / "story"))
    for happening in (_killed_worker, _stopped_worker, _requeued, _preempted, _crash, _slurmd_killed, _time_limit):
        happening(story)
    story.job.wait_for_end()
    return story


def _killed_worker(story: Story) -> None:
    _, second = story.begin("killed worker")
    story.hit["killed worker"] = second
    worker = next(iter(story.cluster.processes(second, "ftscale train")))
    story.cluster.do("exec", second, "kill", "-KILL", str(worker))


def _stopped_worker(story: Story) -> None:
    _, second = story.begin("stopped worker")
    story.hit["stopped worker"] = second
    worker = next(iter(story.cluster.processes(second, "ftscale train")))
    story.cluster.do("exec", second, "kill", "-STOP", str(worker))


def _requeued(story: Story) -> None:
    story.begin("requeued")
    slurm.call("scontrol", "requeue", story.job.id)


def _preempted(story: Story) -> None:
    nodes = story.begin("preempted")
    options = ["-p", "high", "-w", ",".join(nodes), "-N2", "--exclusive", "-o", "/dev/null"]
    slurm.call("sbatch", *options, "--wrap", "sleep 2")


def _crash(story: Story) -> None:
    _, second = story.begin("crash")
    story.hit["crash"] = second
    story.cluster.do("crash", second)
    story.job.wait_for_step(0, start=story.starts["crash"] + 1)
    story.cluster.do("link", second, "up")
    story.cluster.do("start", second)


def _slurmd_killed(story: Story) -> None:
    _, second = story.begin("slurmd killed")
    story.hit["slurmd killed"] = second
    story.cluster.do("slurmd-kill", second)
    story.job.wait_for_step(0, start=story.starts["slurmd killed"] + 1)
    story.cluster.do("start", second)


def _time_limit(story: Story) -> None:
    story.begin("time limit")
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 90))
    slurm.call("scontrol", "update", f"JobId={story.job.id}", f"EndTime={end}")


def test_the_loss_of_every_step_is_that_of_one_undisturbed_process(story: Story, tmp_path: Path):
    run = story.cluster.run_file("alone", steps=STEPS, checkpoint={"prove": "never"})
    assert tiny.command("train", run).code == 0
    alone, all_along = Job(story.cluster.folder / "alone").losses(), story.job.losses()
    assert list(all_along) == list(range(1, STEPS + 1))  # no step lost, none twice
    assert all_along == pytest.approx(alone, rel=1e-4)


def test_a_node_with_a_killed_worker_is_left_out(story: Story):
    end = story.end_of("killed worker")
    assert end["action"] == "again"
    assert story.hit["killed worker"] in end["reason"]
    assert story.hit["killed worker"] not in story.start_after("killed worker")["nodes"]


def test_a_node_with_a_stopped_worker_is_found_and_left_out(story: Story):
    end = story.end_of("stopped worker")
    assert end["reason"].startswith("nothing written for ")
    assert f"({story.hit['stopped worker']} silent)" in end["reason"]
    assert story.hit["stopped worker"] not in story.start_after("stopped worker")["nodes"]


def test_where_the_other_ranks_stood_is_in_their_logs(story: Story):
    logs = "".join(path.read_text() for path in (story.job.folder / "logs").glob("rank-*.log"))
    assert "Current thread" in logs or "most recent call first" in logs
    assert "_train_step" in logs


def test_a_requeue_from_outside_saves_first(story: Story):
    assert story.end_of("requeued")["reason"] == "ended by Slurm (scancel or requeue), saved"
    assert story.start_after("requeued")["step"] == story.end_of("requeued")["step"]


def test_a_preempted_run_saves_and_starts_again(story: Story):
    assert story.end_of("preempted")["reason"] == "preempted, saved"
    assert story.start_after("preempted")["step"] == story.end_of("preempted")["step"]


@pytest.mark.parametrize("what", ["crash", "slurmd killed"])
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint_at_most(story: Story, what: str):
    assert story.hit[what] in story.end_of(what)["reason"]
    assert story.hit[what] not in story.start_after(what)["nodes"]


def test_the_time_limit_becomes_a_checkpoint_and_a_requeue(story: Story):
    assert story.end_of("time limit")["reason"] == "time limit, saved"
    assert story.start_after("time limit")["step"] == story.end_of("time limit")["step"]


def test_status_tells_of_every_start(story: Story):
    shown = tiny.command("status", story.job.folder).stdout
    assert f"completed at step {STEPS}" in shown
    assert f"starts: {len(story.starts) + 1}" in shown
    assert all(str(end["reason"]) in shown for end in story.job.ends)


def test_no_process_is_left_on_any_node(story: Story):
    wait_for(lambda: not any(map(story.cluster.processes, story.cluster.nodes)), "processes to end", patience_s=30)
