"""Runs on a real cluster: both launch styles under every strategy, arrays, chains, bad nodes, and errors.

What trains is of the campaign; tests/slurm/test_faults.py has the run of the ordinary tests.
"""

from __future__ import annotations

import re
import subprocess

import pytest
import tiny
from slurm_cluster import Cluster, Job, wait_for

from ftscale.cluster import slurm

STEPS = 30
EVERY = 5

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

BROKEN = """
import os
from transformers import LlamaForCausalLM


class OwnForCausalLM(LlamaForCausalLM):
    calls = 0

    def forward(self, *args, **kwargs):
        type(self).calls += self.training
        if type(self).calls > 12 and os.environ["RANK"] == "3":
            raise ValueError("a mistake in the model's own code")
        return super().forward(*args, **kwargs)
"""


@pytest.fixture(scope="module")
def alone(cluster: Cluster) -> dict[int, float]:
    """Loss of each step in one process, without Slurm."""
    run = cluster.run_file("one-process", steps=STEPS)
    assert tiny.command("train", run).code == 0
    return Job(cluster.folder / "one-process").losses()


def submit(cluster: Cluster, name: str, *options: object, steps: int = STEPS, **changes: object) -> Job:
    """Two nodes with two processes each."""
    run = cluster.run_file(name, steps=steps, **{"checkpoint": {"every": EVERY, "prove": "never"}, **changes})
    cluster.submit(run, "--nodes", 2, "--processes", 2, *options)
    return Job(cluster.folder / name)


def same(job: Job, alone: dict[int, float]) -> None:
    """Every step once, with the loss that one process had."""
    assert job.losses() == pytest.approx(alone, rel=1e-4)
    assert list(job.losses()) == list(alone)


@pytest.mark.campaign
def test_bad_nodes_are_named_and_left_out(cluster: Cluster, alone: dict[int, float]):
    cluster.site(scratch=str(cluster.scratch), min_free_gib=0.002)
    cluster.do("exec", "n1", "dd", "if=/dev/zero", f"of={cluster.scratch}/full", "bs=1M", "count=7")
    cluster.do("exec", "n2", "mount", "-o", "remount,ro", str(cluster.scratch))
    try:
        job = submit(cluster, "bad-nodes", distributed={"strategy": "zero3"})
        wait_for(lambda: len(job.ends) >= 1, "the health check", job=job)
        # a job for two nodes cannot tell which of two bad ones is at fault: it stops
        assert job.wait_for_end("FAILED") == "FAILED"
        assert "2 of 2 nodes fail the health check" in job.ends[0]["reason"]
        cluster.do("exec", "n2", "mount", "-o", "remount,rw", str(cluster.scratch))
        assert tiny.command("resubmit", job.folder).code == 0
        job.wait_for_end()
    finally:
        cluster.do("exec", "n2", "mount", "-o", "remount,rw", str(cluster.scratch))
        cluster.do("exec", "n1", "rm", f"{cluster.scratch}/full")
        cluster.site()
    assert re.search(r"bad node n1: 0\.00 GiB free on the scratch disk .*, 0\.002 are asked for", job.log)
    assert re.search(r"bad node n2: cannot write to the scratch disk .*: Read-only file system", job.log)
    assert job.ends[1]["reason"].startswith("bad node: n1: 0.00 GiB free")
    assert "n1" not in job.nodes
    assert job.fields["ExcNodeList"] == "n1"
    assert "strategy zero3: DeepSpeed ZeRO stage 3, 4 processes" in job.log
    same(job, alone)


@pytest.mark.campaign
def test_a_python_error_in_one_rank_is_told_first_and_the_mended_run_resubmitted(
    cluster: Cluster, alone: dict[int, float]
):
    model = cluster.own_model("broken", BROKEN)
    options = ("--launcher", "accelerate")
    changes = {"model": {"name": str(model), "trust_remote_code": True}, "distributed": {"strategy": "zero2"}}
    job = submit(cluster, "mistake", *options, **changes)
    assert job.wait_for_end("FAILED") == "FAILED"
    assert job.fields["ExitCode"] == "1:0"
    assert job.ends[0]["reason"].startswith("rank 3 on n2: ValueError: a mistake in the model's own code")
    errors = [line for line in job.log.splitlines() if "rror" in line]
    assert "[rank 3 on n2]" in errors[0]
    tracebacks = re.findall(r"^(.*)Traceback \(most recent call last\)", job.log, re.M)
    assert set(tracebacks) == {"[rank 3 on n2] "}  # nobody else's
    assert "a mistake in the model's own code" in (job.folder / "logs/rank-00003.log").read_text()
    assert tiny.command("logs", job.folder, "--rank", 3).stdout == (job.folder / "logs/rank-00003.log").read_text()
    assert len(job.records.events("start")) == 1

    cluster.own_model("broken", BROKEN.replace("raise ValueError", "print"))
    assert "submitted job" in tiny.command("resubmit", job.folder).stdout
    job.wait_for_end()
    assert job.records.events("start")[-1]["step"] > 0
    assert "strategy zero2: DeepSpeed ZeRO stage 2, 4 processes" in job.log
    same(job, alone)
    finished = tiny.command("resubmit", job.folder)
    assert (finished.code, "is finished (completed)" in finished.stderr) == (2, True)


@pytest.mark.campaign
def test_a_chain_goes_on_without_requeue_ends_on_a_drained_node_and_stops_when_complete(
    cluster: Cluster, alone: dict[int, float]
):
    job = submit(cluster, "chain", "--chain", 3, "--launcher", "srun", distributed={"strategy": "zero2"})
    first, second, third = job.records.jobs()
    job.wait_for_step(EVERY + 1, start=1)
    following = subprocess.Popen(["ftscale", "logs", "-f", job.folder], stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    assert any(f"[job {first}.0] start on" in line for line in following.stdout)  # it follows the first job
    slurm.call("scancel", "--batch", "--signal=USR1", first)  # as Slurm does before the time limit
    job.wait_for_start(2)
    job.wait_for_step(job.ends[0]["step"] + 1, start=2)
    drained = job.nodes[1]
    slurm.call("scontrol", "update", f"NodeName={drained}", "State=DRAIN", "Reason=test")
    wait_for(lambda: slurm.job_fields(second)["JobState"] in slurm.ENDED, "the second job", job=job)
    assert "DRAIN" in slurm.node_states([drained])[drained]
    assert len(job.records.events("start")) == 2  # the drained node's job went on to its end
    fields = [slurm.job_fields(name) for name in (first, second, third)]
    assert [field["JobState"] for field in fields] == ["FAILED", "COMPLETED", "CANCELLED"]
    assert fields[0]["ExitCode"] == "75:0"
    assert {field["Requeue"] for field in fields} == {"0"}
    assert [end["reason"] for end in job.ends] == ["time limit, saved", "completed"]
    said = following.communicate()[0]
    assert f"[job {second}.0] start on" in said
    assert f"[job {second}.0] completed" in said
    same(job, alone)


@pytest.mark.campaign
def test_an_elastic_run_goes_on_with_the_nodes_that_are_left(cluster: Cluster, alone: dict[int, float]):
    options = ("--elastic", "--partition", "pair", "--launcher", "srun")
    job = submit(cluster, "elastic", *options, distributed={"strategy": "zero3"})
    job.wait_for_checkpoint(after=0)
    assert job.nodes == ["n1", "n2"]
    cluster.do("crash", "n2")
    job.wait_for_end()
    assert job.nodes == ["n1"]
    assert "global batch 8 samples = 4 per device x 1 accumulation x 2 processes" in job.log
    for processes in (4, 2):
        assert f"strategy zero3: DeepSpeed ZeRO stage 3, {processes} processes" in job.log
    same(job, alone)


@pytest.mark.campaign
def test_an_array_with_a_failing_member_and_its_table(cluster: Cluster):
    run = cluster.run_file("array", steps=6)
    rates = "1e-3,2e-3,3e-3,4e-3,5e-3,1e30"
    cluster.submit(run, "--grid", f"optimizer.lr={rates}", "--launcher", "srun")
    job = Job(cluster.folder / "array")
    members = [cluster.folder / "array" / f"optimizer.lr-{rate}" for rate in rates.split(",")]
    for number, member in enumerate(members):
        Job(member).wait_for_end("FAILED" if number == 5 else "COMPLETED")
    table = tiny.command("table", job.folder).stdout.splitlines()
    assert re.split(r"\s{2,}", table[0]) == ["run", "optimizer.lr", "status", "loss", "perplexity", "token_accuracy"]
    states = {line.split()[1]: line.split()[2] for line in table[1:]}
    assert states.pop("1e+30") == "failed"
    assert list(states.values()) == ["completed"] * 5
    shown = tiny.command("status", job.folder).stdout
    assert shown.count("completed at step 6") == 5


def test_what_sbatch_refuses_is_told_in_its_words_and_nothing_is_written(cluster: Cluster):
    run = cluster.run_file("refused", steps=6)
    for options, words in (
        (("--partition", "nowhere"), "invalid partition specified: nowhere"),
        (("--partition", "closed", "--account", "biology"), "Invalid account"),
    ):
        outcome = cluster.submit(run, *options, code=2)
        assert words in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert not (cluster.folder / "refused").exists()
    assert not slurm.call("squeue", "-h").strip()


def test_a_dry_run_prints_the_script_and_writes_nothing(cluster: Cluster):
    run = cluster.run_file("dry", steps=6)
    script = cluster.submit(run, "--nodes", 3, "--gpus-per-node", 4, "--time", "2-00:00:00", "--dry-run").stdout
    assert "#SBATCH --nodes=3" in script
    assert "#SBATCH --gpus-per-node=4" in script
    assert "PROCESSES=4" in script
    assert not (cluster.folder / "dry").exists()
