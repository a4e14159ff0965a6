"""Things that happen to a run on a cluster, and what each costs: for the tests, and for benchmarks/slurm_faults.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm_cluster import Cluster, Job, wait_for

from ftscale.cluster import slurm

EVERY = 5
"""Steps between the checkpoints of the run."""
LIMIT_S = 90
"""To the time limit, when it is moved: Slurm looks at it every half a minute, and warns the run that long before."""


PACED = """
import time
from pathlib import Path
from transformers import LlamaForCausalLM


class OwnForCausalLM(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        if self.training and (Path(self.name_or_path) / "slowly").exists():
            time.sleep(0.5)
        return super().forward(*args, **kwargs)
"""
"""A model that takes its time while there is a file, so that the run is not over before what it waits for."""


@dataclass
class Event:
    """What one happening did."""

    start: int
    """The start that it ended, counted from 1."""
    nodes: list[str]
    hit: str
    """The node that it struck."""
    recovery_s: float = 0.0
    """From the happening to the first new step."""
    steps_lost: int = 0


@dataclass
class Story:
    """A run of two nodes, and what happened to it so far."""

    cluster: Cluster
    job: Job
    events: dict[str, Event] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, cluster: Cluster, name: str, *, steps: int, launcher: str, processes: int = 2, **changes: Any
    ) -> Story:
        """Submit the run with so many processes a node."""
        model = {"name": str(cluster.own_model("paced", PACED)), "trust_remote_code": True}
        checkpoint = {"every": EVERY, "prove": "never"}
        run = cluster.run_file(name, steps=steps, model=model, checkpoint=checkpoint, **changes)
        cluster.submit(run, "--nodes", 2, "--processes", processes, "--partition", "low", "--launcher", launcher)
        return cls(cluster, Job(cluster.folder / name))

    @property
    def slowly(self) -> Path:
        """The file by which a step takes half a second."""
        return self.cluster.folder / "paced/slowly"

    def happen(self, name: str) -> None:
        """Wait until the run trains and has a new checkpoint, let it happen, wait for the first step after it."""
        number = len(self.events) + 1
        self.job.wait_for_start(number)
        before = self.job.records.events("start")[number - 1]["step"]
        self.job.wait_for_step(before + EVERY + 1, start=number)
        self.job.wait_for_checkpoint(after=before)
        nodes = self.job.nodes
        event = self.events[name] = Event(number, nodes, nodes[1])
        began = time.time()
        HAPPENINGS[name](self, event)
        last = max(self.job.losses())
        self.job.wait_for_start(number + 1)
        went_on = self.job.records.events("start")[number]["step"]
        self.job.wait_for_step(went_on + 1, start=number + 1)
        event.recovery_s, event.steps_lost = round(time.time() - began, 1), max(0, last - went_on)
        self.cluster.do("link", event.hit, "up")
        self.cluster.do("start", event.hit)

    def check_left_out(self, name: str) -> None:
        """The node that this struck is named as the reason, and not used again."""
        hit = self.events[name].hit
        assert hit in self.end(name)["reason"]
        assert hit not in self.next_start(name)["nodes"]

    def end(self, name: str) -> dict[str, Any]:
        """The record of the start that this ended."""
        return self.job.ends[self.events[name].start - 1]

    def next_start(self, name: str) -> dict[str, Any]:
        """The record of the start after it."""
        return self.job.records.events("start")[self.events[name].start]


def _a_worker(story: Story, event: Event) -> str:
    """A process id, as its node counts."""
    return str(next(iter(story.cluster.processes(event.hit, "ftscale train"))))


def _kill_a_worker(story: Story, event: Event) -> None:
    story.cluster.do("exec", event.hit, "kill", "-KILL", _a_worker(story, event))


def _stop_a_worker(story: Story, event: Event) -> None:
    story.cluster.do("exec", event.hit, "kill", "-STOP", _a_worker(story, event))


def _requeue(story: Story, event: Event) -> None:
    slurm.call("scontrol", "requeue", story.job.id)


def _preempt(story: Story, event: Event) -> None:
    options = ["-p", "high", "-w", ",".join(event.nodes), "-N2", "--exclusive", "-o", "/dev/null"]
    slurm.call("sbatch", *options, "--wrap", "sleep 2")


def _crash(story: Story, event: Event) -> None:
    story.cluster.do("crash", event.hit)


def _cut_the_link(story: Story, event: Event) -> None:
    story.cluster.do("link", event.hit, "down")


def _kill_slurmd(story: Story, event: Event) -> None:
    story.cluster.do("slurmd-kill", event.hit)


def _reach_the_time_limit(story: Story, event: Event) -> None:
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + LIMIT_S))
    slurm.call("scontrol", "update", f"JobId={story.job.id}", f"EndTime={end}")
    story.slowly.touch()
    wait_for(lambda: len(story.job.ends) >= event.start, "the end of the start", job=story.job)
    story.slowly.unlink()
    slurm.call("scontrol", "update", f"JobId={story.job.id}", "TimeLimit=120")  # it keeps the shorter one


def _reach_it_in_an_evaluation(story: Story, event: Event) -> None:
    """At the end of an epoch; the evaluation takes longer than Slurm needs to look at the time."""
    job = story.job
    wait_for(lambda: max(job.losses()) % EVALUATED == 0, "an evaluation", job=job)
    _reach_the_time_limit(story, event)


EVALUATED = 20
"""Steps between the evaluations of a run that is stopped in one."""

HAPPENINGS: dict[str, Callable[[Story, Event], None]] = {
    "one worker killed": _kill_a_worker,
    "one worker stopped (SIGSTOP)": _stop_a_worker,
    "scontrol requeue": _requeue,
    "preempted by a higher partition": _preempt,
    "node crashed without a farewell": _crash,
    "link cut": _cut_the_link,
    "slurmd killed alone": _kill_slurmd,
    "time limit in a step": _reach_the_time_limit,
    "time limit in an evaluation": _reach_it_in_an_evaluation,
}
