"""Small runs of real parts: settings of a run in seconds, and the command line in this process or in its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import forks

from ftscale.config.yaml_text import write_yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
PATIENCE_S = 1800  # with what never comes; no slow machine meets it


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    code: int
    stdout: str
    stderr: str


def settings(shared: Path, work: Path, **changes: Any) -> dict[str, Any]:
    """A run of 3 steps: the 260 K Llama with a new head, on film reviews."""
    reviews = shared / "data/text_classification/sst2"
    columns = {"header": False, "columns": {"text": 0, "label": 1}}
    return {
        "task": {"name": "text_classification", "max_length": 64},
        "run_folder": str(work / "run"),
        "model": str(shared / "weights/stories260K"),
        "data": {
            "train": {"path": str(reviews / "train.tsv"), "limit": 64, **columns},
            "eval": {"path": str(reviews / "dev.tsv"), "limit": 32, **columns},
            "cache_dir": str(work / "cache"),
        },
        "batch": {"global_size": 8},
        "optimizer": {"lr": 1e-3},
        "train": {"max_steps": 3},
        "checkpoint": {"prove": "never"},
        "report": {"page": False},
        **changes,
    }


def write_run(work: Path, values: dict[str, Any], *, name: str = "run.yaml") -> Path:
    """The settings as a file."""
    work.mkdir(parents=True, exist_ok=True)
    (work / name).write_text(write_yaml(values))
    return work / name


def command(*arguments: object) -> Outcome:
    """`ftscale ARGUMENTS` in this process: quick, since torch is imported already."""
    from ftscale.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    words = ["ftscale", *map(str, arguments)]
    with patch.object(sys, "argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return Outcome(code, out.getvalue(), err.getvalue())


def forked(*arguments: object, cwd: Path = ROOT, processes: int = 1) -> Outcome:
    """`ftscale ARGUMENTS` in so many processes that are forked, not started (see forks.py)."""
    if forks.real_starts():
        launcher = ["torchrun", "--standalone", "--nproc_per_node", processes, "-m"] if processes > 1 else []
        return process(*launcher, "ftscale", *arguments, cwd=cwd)
    variables = {**os.environ, **environment()}
    done = forks.run_module(
        "ftscale", list(map(str, arguments)), environment=variables, folder=cwd, processes=processes
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def process(*arguments: object, cwd: Path = ROOT) -> Outcome:
    """A program of this environment (`ftscale`, `accelerate`, `torchrun`, `python`) in a process of its own."""
    done = subprocess.run(
        [str(word) for word in arguments],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    """What test processes have besides the environment of the tests."""
    return {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}


def wait_until(condition: Callable[[], bool], what: str, *, program: subprocess.Popen | None = None) -> None:
    """Until it holds; a program that ends before fails at once."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert program is None or program.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.02)


def steps(run_folder: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each optimizer step."""
    return [line for line in metrics(run_folder) if line["kind"] == "train"]


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file under a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
