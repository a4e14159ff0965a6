"""One run that everything happens to, one thing after another; it ends as the run that nothing happened to."""

from __future__ import annotations

import pytest
import tiny
from slurm_cluster import Cluster, Job

STEPS = 400

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_killed_worker(cluster: Cluster):
    run = cluster.run_file("killed", steps=60, checkpoint={"every": 5})
    cluster.submit(run, "--nodes", 2, "--processes", 2, "--partition", "low")
    job = Job(cluster.folder / "killed")
    job.wait_for_step(11, start=1)
    bad = job.nodes[1]
    pid = next(pid for pid, words in cluster.processes(bad, "ftscale train").items())
    cluster.do("exec", bad, "kill", "-KILL", str(pid))
    job.wait_for_end()
    print(job.log)
    print(job.ends, tiny.command("status", job.folder).stdout)
    print(tiny.command("status", job.folder).stdout)
    assert bad not in job.nodes
