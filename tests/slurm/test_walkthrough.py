"""Every command of docs/slurm.md, in its order, on a real cluster."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tiny
from slurm_cluster import ROOT, Cluster, Job, wait_for

from ftscale.cluster import slurm
from ftscale.config.yaml_text import read_yaml

PAGE = ROOT / "docs/slurm.md"
STEPS, LONG = 6, 3000
FOLLOW = "ftscale logs -f runs/mine"
WAITS = ("ftscale resubmit", "ftscale table", "sbatch --output=scores.log")
"""Commands that a user gives when the jobs before are over."""

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def work(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user, where the commands are given: run.yaml, runs.txt, and the project's slurm/."""
    folder = cluster.folder / "work"
    folder.mkdir()
    (folder / "runs.txt").write_text("".join(f"run.yaml seed={n} run_folder=runs/seed-{n}\n" for n in range(2)))
    (folder / "slurm").symlink_to(ROOT / "slurm")
    (folder / "cluster.yaml").symlink_to(cluster.folder / "cluster.yaml")
    monkeypatch.chdir(folder)
    return folder


def write_run(cluster: Cluster, work: Path, *, steps: int) -> None:
    run = cluster.run_file("page", steps=steps, checkpoint={"every": 5, "prove": "never"})
    (work / "run.yaml").write_text(run.read_text().replace(str(cluster.folder / "page"), "runs/mine"))


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]


@pytest.mark.campaign
def test_every_command_of_the_page_works(cluster: Cluster, work: Path):
    write_run(cluster, work, steps=LONG)
    said: dict[str, str] = {}
    mine, following = Job(work / "runs/mine"), None
    assert len(commands()) > 12
    for command in commands():
        if command.startswith(WAITS):
            wait_for(lambda: not slurm.call("squeue", "-h").strip(), f"the jobs before `{command}`")
        if command == FOLLOW:  # it ends with the job
            mine.wait_for_step(1, start=1)
            following = subprocess.Popen(shlex.split(command), cwd=work, stdout=subprocess.PIPE, text=True)
            continue
        if command.startswith("ftscale resubmit"):
            assert following is not None
            said[FOLLOW] = following.communicate()[0]
            check_cancelled(mine)
        words = shlex.split(command)
        if command.startswith("ftscale submit") and "--nodes" in words:
            words += ["--processes", "2"]  # a node's GPUs, where it has some
        # resubmit in a process of its own: sbatch gives the job its environment
        here = words[0] == "ftscale" and words[1] != "resubmit"
        done = tiny.command(*words[1:]) if here else tiny.process(*words, cwd=work)
        assert done.code == 0, f"{command}\n{done.stdout}{done.stderr}"
        said[command] = done.stdout
        if command.startswith("ftscale resubmit"):
            mine.wait_for_step(mine.ends[-1]["step"] + 1, start=2)
            assert mine.fields["TimeLimit"] == "01:00:00"
            assert "TORCHDYNAMO_DISABLE" not in environment(cluster, mine.nodes[0], "ftscale train")
            still = tiny.command("resubmit", "runs/mine")
            assert (still.code, "still has job" in still.stderr) == (2, True)
            assert tiny.command("cancel", "--now", "runs/mine").stdout == f"cancelled {mine.id}\n"
            mine.wait_for_end("CANCELLED")
            assert mine.fields["Restarts"] == "0"
            write_run(cluster, work, steps=STEPS)
    wait_for(lambda: not slurm.call("squeue", "-h").strip(), "the last jobs")
    assert f"step 1/{LONG}" in said[FOLLOW]
    assert "ends after a checkpoint" in said["ftscale cancel runs/mine"]
    assert "cancelled, saved" in said[FOLLOW]
    assert "rank 1 is process" in said["ftscale logs runs/mine --rank 1"]
    assert said["ftscale table runs/rates"].count("mean +- deviation") == 2
    for name in ("hand", "seed-0", "seed-1", "chain"):
        shown = tiny.command("status", f"runs/{name}").stdout
        assert f"completed at step {STEPS}" in shown, shown
    assert '"perplexity"' in (work / "scores.log").read_text()
    assert tiny.command("train", "run.yaml", "run_folder=runs/alone").code == 0
    by_hand, alone = (Job(work / f"runs/{name}").losses() for name in ("hand", "alone"))
    assert by_hand == pytest.approx(alone, rel=1e-4)  # DDP under torchrun, on two nodes
    assert len(alone) == STEPS


def environment(cluster: Cluster, node: str, pattern: str) -> str:
    """Of a process of a job, as it began."""
    process = next(iter(cluster.processes(node, pattern)))
    return cluster.do("exec", node, "cat", f"/proc/{process}/environ")


def check_cancelled(job: Job) -> None:
    """It saved first, and is not started again."""
    job.wait_for_end("CANCELLED")
    assert job.fields["Restarts"] == "0"
    assert job.ends[0]["reason"] == "cancelled, saved"
    assert job.ends[0]["step"] == job.metrics("train")[-1]["step"] > 0
    assert tiny.command("cancel", job.folder).code == 2


def test_the_pages_settings_of_a_site_are_read(cluster: Cluster):
    text = re.findall(r"```yaml\n(# ~/.config/ftscale/cluster.yaml\n.*?)```", PAGE.read_text(), re.S)[0]
    written = read_yaml(text, source=PAGE.name)
    cluster.site(**written)
    try:
        script = cluster.submit(cluster.run_file("site", steps=STEPS), "--dry-run").stdout
    finally:
        cluster.site()
    for line in ("--account=physics", "--gpus-per-node=8", "--cpus-per-task=64", "--qos=long", "--exclusive"):
        assert f"#SBATCH {line}\n" in re.sub(r" +#.*", "", script)
    assert "\n".join(written["setup"]) in script
