"""Real processes that are asked to stop: in preparation, with workers, in groups; none dies first, none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = pytest.mark.slow
MANY = 60_000  # rows: some seconds of tokenising


def begin(work: Path, values: dict[str, Any], *arguments: str) -> subprocess.Popen:
    """`ftscale train` in a process group of its own."""
    file = tiny.write_run(work, values)
    with open(work / "log", "w") as log:
        return subprocess.Popen(
            [str(tiny.BIN / "ftscale"), "train", str(file), *arguments],
            env={**os.environ, **tiny.environment()},
            stdout=log,
            stderr=log,
            cwd=tiny.ROOT,
            start_new_session=True,
        )


def wait_until(program: subprocess.Popen, ready: Callable[[], bool], *, what: str) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert program.poll() is None, f"the run ended before {what}"
        assert time.monotonic() < deadline, f"no {what} in time"
        time.sleep(0.02)


def group(program: subprocess.Popen) -> set[int]:
    """The processes of its group that are no zombies."""
    members = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == program.pid and state != "Z":
            members.add(int(stat.parent.name))
    return members


def check_all_gone(program: subprocess.Popen) -> None:
    deadline = time.monotonic() + 20
    while group(program) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert group(program) == set()


@pytest.mark.parametrize("to_all", [False, True], ids=["to the run", "to the group"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_while_rows_are_prepared(shared: Path, tmp_path: Path, workers: int, to_all: bool):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"a row about number {n} of many,{n % 3}\n" for n in range(MANY)))
    data = {"train": str(rows), "cache_dir": str(tmp_path / "cache"), "prepare_workers": workers}
    program = begin(tmp_path, tiny.settings(shared, tmp_path, data=data))
    arrow = lambda: any(path.stat().st_size for path in (tmp_path / "cache").glob("*.partial/*.arrow"))  # noqa: E731
    wait_until(program, arrow, what="prepared rows")
    assert len(group(program)) >= workers
    (os.killpg if to_all else os.kill)(program.pid, signal.SIGTERM)
    assert program.wait(timeout=30) == 75, (tmp_path / "log").read_text()
    check_all_gone(program)
    assert not (tmp_path / "run").exists()
    assert "before training began; nothing is lost" in (tmp_path / "log").read_text()
    again = begin(tmp_path, tiny.settings(shared, tmp_path, data=data))
    assert again.wait(timeout=500) == 0, (tmp_path / "log").read_text()


def test_a_stop_of_the_whole_group_with_workers_that_collate(shared: Path, tmp_path: Path):
    values = tiny.settings(shared, tmp_path, train={"max_steps": 2000}, checkpoint={"every": 5000, "prove": "never"})
    values["data"]["num_workers"] = 2
    program = begin(tmp_path, values)
    metrics = tmp_path / "run/metrics.jsonl"
    wait_until(program, lambda: metrics.is_file() and len(tiny.steps(tmp_path / "run")) > 2, what="steps")
    assert len(group(program)) >= 3
    os.killpg(program.pid, signal.SIGTERM)
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait(timeout=60) == 75, (tmp_path / "log").read_text()
    check_all_gone(program)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{result['steps']:08d}"]


def test_workers_that_collate_end_with_a_run_that_is_killed(shared: Path, tmp_path: Path):
    values = tiny.settings(shared, tmp_path, train={"max_steps": 2000}, checkpoint={"every": 5000, "prove": "never"})
    values["data"]["num_workers"] = 2
    program = begin(tmp_path, values)
    metrics = tmp_path / "run/metrics.jsonl"
    wait_until(program, lambda: metrics.is_file() and len(tiny.steps(tmp_path / "run")) > 2, what="steps")
    program.kill()
    program.wait()
    check_all_gone(program)


def test_the_end_of_the_jobs_time_stops_the_run_without_a_signal(shared: Path, tmp_path: Path):
    values = tiny.settings(shared, tmp_path, train={"max_steps": 100_000})
    values["checkpoint"] = {"every": 100_000, "before_end_s": 300, "prove": "never"}
    os.environ["FTSCALE_END_TIME"] = str(int(time.time()) + 345)
    try:
        program = begin(tmp_path, values)
    finally:
        del os.environ["FTSCALE_END_TIME"]
    assert program.wait(timeout=200) == 75, (tmp_path / "log").read_text()
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "preempted"
    assert "asked to stop (time limit)" in (tmp_path / "log").read_text()
