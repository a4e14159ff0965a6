"""Runs a test's worker script in one or more ranks, forked or started; and undoes the end of a run."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import forks

ROOT = Path(__file__).resolve().parents[1]


def launch(
    worker: Path,
    jobs: list[dict[str, Any]],
    *,
    processes: int,
    work: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run the jobs one after another in the same processes; fails with their output where one fails."""
    done = try_to_launch(worker, jobs, processes=processes, work=work, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-8000:]


def try_to_launch(
    worker: Path,
    jobs: list[dict[str, Any]],
    *,
    processes: int,
    work: Path,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the jobs one after another in the same processes, however that ends."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"jobs-{processes}.json"
    file.write_text(json.dumps(jobs))
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        **(environment or {}),
    }
    if not forks.real_starts():
        return forks.run_ranks(worker, [str(file)], processes=processes, environment=variables)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
    command = [sys.executable, *launcher, "--standalone", str(worker), str(file)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)


def listed_jobs() -> Iterator[dict[str, Any]]:
    """In a worker script: its jobs. What is there between them, the libraries, the garbage collector leaves alone.

    Behind each job its models go first: garbage that is frozen stays for good, which was 30 MB a job.
    """
    for job in json.loads(Path(sys.argv[1]).read_text()):
        yield job
        gc.collect()
        gc.freeze()


def forget_after(whole: Path, half: Path, *, step: int) -> None:
    """A copy of a finished run as a kill after the checkpoint of `step` would have left it."""
    shutil.copytree(whole, half)
    (half / "result.json").unlink()
    shutil.rmtree(half / "model")
    for folder in (half / "checkpoints").iterdir():
        if folder.name > f"step-{step:08d}":
            shutil.rmtree(folder)
