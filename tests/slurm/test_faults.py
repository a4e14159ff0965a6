"""One run that everything happens to, one thing after another; it ends as the run that nothing happened to.

It has no launcher (srun). Six more happenings, and these under torchrun, are in benchmarks/slurm_faults.py; a crashed
and a drained node are also in test_runs.py.
"""

from __future__ import annotations

import pytest
import tiny
from slurm_cluster import Cluster, Job
from slurm_story import EVERY, Story

STEPS = 160
LEFT_OUT = "one worker killed"
SAVED = ("preempted by a higher partition", "time limit in a step")

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def story(cluster: Cluster) -> Story:
    """The run is through when the fixture is; the tests look at what it left."""
    story = Story.begin(cluster, "story", steps=STEPS, launcher="srun")
    story.slowly.touch()  # up to the last of these, the time limit
    for name in (LEFT_OUT, *SAVED):
        story.happen(name)
    story.job.wait_for_end()
    return story


def test_the_loss_of_every_step_is_that_of_one_undisturbed_process(story: Story):
    run = story.cluster.run_file("alone", steps=STEPS)
    assert tiny.command("train", run).code == 0
    alone, all_along = Job(story.cluster.folder / "alone").losses(), story.job.losses()
    assert list(all_along) == list(range(1, STEPS + 1))  # no step lost, none twice
    assert all_along == pytest.approx(alone, rel=1e-3)


def test_a_node_with_a_process_that_dies_is_found_and_left_out(story: Story):
    story.check_left_out(LEFT_OUT)
    assert story.end(LEFT_OUT)["action"] == "again"
    assert story.events[LEFT_OUT].steps_lost <= 2 * EVERY  # the newest checkpoint may not have been written to its end


@pytest.mark.parametrize("name", SAVED)
def test_a_run_that_is_asked_to_stop_loses_no_step(story: Story, name: str):
    assert "saved" in story.end(name)["reason"]
    assert "not saved" not in story.end(name)["reason"]
    assert story.events[name].steps_lost == 0


def test_each_reason_is_told_apart(story: Story):
    reasons = [story.end(name)["reason"] for name in SAVED]
    assert reasons == ["preempted, saved", "time limit, saved"]


def test_status_tells_of_every_start(story: Story):
    shown = tiny.command("status", story.job.folder).stdout
    assert f"completed at step {STEPS}" in shown
    assert f"starts: {len(story.events) + 1}" in shown
    assert all(str(end["reason"]) in shown for end in story.job.ends)
