"""One run that is submitted and that things happen to, one after another; it ends as if nothing had happened.

A lost node and a requeue in an ordinary run, three more things in the campaign. It has no launcher (srun). Four more,
and these under torchrun, are in benchmarks/slurm_faults.py.
"""

from __future__ import annotations

import needs
import pytest
import tiny
from slurm_cluster import Cluster, Job
from slurm_story import EVERY, Story

PROCESSES = 2 if needs.ALL else 1  # a node
LEFT_OUT = ["node crashed without a farewell"]
SAVED = {"scontrol requeue": "ended by Slurm (scancel or requeue), saved"}
"""And the reason that is told."""
if needs.ALL:
    LEFT_OUT += ["one worker killed"]
    SAVED |= {"preempted by a higher partition": "preempted, saved", "time limit in a step": "time limit, saved"}
STEPS = 40 * (len(LEFT_OUT) + len(SAVED))

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def story(cluster: Cluster) -> Story:
    """The run is through when the fixture is; the tests look at what it left."""
    story = Story.begin(cluster, "story", steps=STEPS, launcher="srun", processes=PROCESSES)
    story.slowly.touch()  # up to the last of these, a time limit where there is one
    for name in (*LEFT_OUT, *SAVED):
        story.happen(name)
    story.slowly.unlink(missing_ok=True)
    story.job.wait_for_end()
    return story


def test_the_loss_of_every_step_is_that_of_one_undisturbed_process(story: Story):
    run = story.cluster.run_file("alone", steps=STEPS)
    assert tiny.command("train", run).code == 0
    alone, all_along = Job(story.cluster.folder / "alone").losses(), story.job.losses()
    assert list(all_along) == list(range(1, STEPS + 1))  # no step lost, none twice
    assert all_along == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_node_that_is_lost_or_whose_process_dies_is_left_out(story: Story, name: str):
    story.check_left_out(name)
    assert story.events[name].steps_lost <= 2 * EVERY  # the newest checkpoint may not have been written to its end


@pytest.mark.parametrize("name", SAVED)
def test_a_run_that_is_asked_to_stop_loses_no_step_and_says_why(story: Story, name: str):
    assert story.end(name)["reason"] == SAVED[name]
    assert story.events[name].steps_lost == 0


def test_status_tells_of_every_start(story: Story):
    shown = tiny.command("status", story.job.folder).stdout
    assert f"completed at step {STEPS}" in shown
    assert f"starts: {len(story.events) + 1}" in shown
    assert all(str(end["reason"]) in shown for end in story.job.ends)
