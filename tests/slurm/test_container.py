"""Steps in a container on a real cluster, with a stand-in for Apptainer: no image is run, the command itself is.

What the stand-in cannot show is that an image has what ftscale needs, and that Apptainer binds what it is told to.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster, Job, wait_for

from ftscale.cluster import slurm

STEPS, LONGER = 60, 80

APPTAINER = """#!/bin/bash
printf '%s\\n' "node $SLURMD_NODENAME nousersite $PYTHONNOUSERSITE" "$@" "" >> "{said}.$SLURMD_NODENAME"
while [[ $1 != *.sif ]]; do shift; done
shift
exec "$@" # as the real one, which also hands signals on where it stays as the parent
"""

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.campaign]


@pytest.fixture
def said(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the stand-in writes what it was given, by node."""
    tools, said = cluster.folder / "tools", cluster.folder / "apptainer-said"
    tools.mkdir()
    (tools / "apptainer").write_text(APPTAINER.format(said=said))
    (tools / "apptainer").chmod(0o755)
    (cluster.folder / "no-image.sif").touch()
    cluster.site(container={"runtime": "apptainer", "image": "no-image.sif", "options": ["--env=A=1"]})
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    yield said
    cluster.site()


def test_a_run_in_a_container_saves_on_a_signal_goes_on_and_goes_on_for_longer(cluster: Cluster, said: Path):
    run = cluster.run_file("contained", steps=STEPS, checkpoint={"every": 5, "prove": "never"})
    cluster.submit(run, "--nodes", 2, "--processes", 2)
    job = Job(cluster.folder / "contained")
    job.wait_for_step(3, start=1)
    slurm.call("scancel", "--batch", "--signal=USR1", job.id)
    job.wait_for_start(2)
    job.wait_for_end()
    first, second = job.ends
    assert (first["reason"].endswith(", saved"), second["reason"]) == (True, "completed")
    assert 3 <= first["step"] < STEPS
    assert list(job.losses()) == list(range(1, STEPS + 1))
    check_calls(cluster, said)

    by_hand = slurm.call("sbatch", "--parsable", str(job.records.folder / "job.sbatch")).strip()
    wait_for(lambda: slurm.job_fields(by_hand)["JobState"] in slurm.ENDED, "the job of a finished run", job=job)
    assert slurm.job_fields(by_hand)["JobState"] == "COMPLETED", job.log
    assert job.ends[-1]["reason"] == "completed"

    assert cluster.submit(run, "--resume", code=2).stderr.count("is finished (completed)") == 1
    cluster.submit(run, "--resume", "--processes", 2, overrides=(f"train.max_steps={LONGER}",))
    job.wait_for_end()
    assert list(job.losses()) == list(range(1, LONGER + 1))
    assert job.ends[-1]["reason"] == "completed"


def check_calls(cluster: Cluster, said: Path) -> None:
    """Two starts on two nodes, each with a check and a training step."""
    folder = cluster.folder
    for node in ("n1", "n2"):
        calls = [call.splitlines() for call in Path(f"{said}.{node}").read_text().strip().split("\n\n")]
        assert [call[call.index("ftscale") + 1] for call in calls] == ["node-check", "node"] * 2
        for call in calls:
            assert call[:2] == [f"node {node} nousersite 1", "exec"]
            mounts = [Path(mount.partition(":")[0]) for mount in call[call.index("--bind") + 1].split(",")]
            data, model = (cluster.shared / name for name in ("data/translation/multi30k_de-en", "weights/stories260K"))
            assert all(any(place.is_relative_to(mount) for mount in mounts) for place in (folder, data, model))
            assert [mount for mount in mounts if not mount.is_dir() or mount == Path("/")] == []
            assert call[call.index("--pwd") + 1] == str(folder)
            assert call[call.index("ftscale") - 2 : call.index("ftscale")] == [
                "--env=A=1",
                str(folder / "no-image.sif"),
            ]
