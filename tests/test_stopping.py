"""Real processes that are asked to stop: in preparation, with workers, in groups; none dies first, none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny

pytestmark = pytest.mark.slow
MANY = 100_000  # rows: some seconds of tokenising


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
    tiny.wait_until(lambda: not group(program), "the end of all its processes")


@pytest.mark.parametrize(
    ("workers", "to_all"), [(1, False), (2, True), needs.in_campaign(1, True), needs.in_campaign(2, False)]
)
def test_a_stop_while_rows_are_prepared(shared: Path, tmp_path: Path, workers: int, to_all: bool):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"a row about number {n} of many,{n % 3}\n" for n in range(MANY)))
    data = {"train": str(rows), "cache_dir": str(tmp_path / "cache"), "prepare_workers": workers}
    program = begin(tmp_path, tiny.settings(shared, tmp_path, data=data))
    cache = tmp_path / "cache"
    begun = lambda: any(cache.glob("*.partial")) and len(group(program)) >= workers  # noqa: E731
    tiny.wait_until(begun, "rows that are being prepared", program=program)
    (os.killpg if to_all else os.kill)(program.pid, signal.SIGTERM)
    assert program.wait() == 75, (tmp_path / "log").read_text()
    check_all_gone(program)
    assert not (tmp_path / "run").exists()
    said = (tmp_path / "log").read_text()
    assert "before training began; nothing is lost" in said
    assert f" start it again: ftscale train {tmp_path / 'run.yaml'}\n" in said
    few = json.dumps({"path": str(rows), "limit": 100})
    assert tiny.command("train", tmp_path / "run.yaml", f"data.train={few}").code == 0


def test_a_stop_of_the_whole_group_with_workers_that_collate(shared: Path, tmp_path: Path):
    values = tiny.settings(shared, tmp_path, train={"max_steps": 2000}, checkpoint={"every": 5000, "prove": "never"})
    values["data"]["num_workers"] = 2
    program = begin(tmp_path, values)
    metrics = tmp_path / "run/metrics.jsonl"
    steps = lambda: metrics.is_file() and len(tiny.steps(tmp_path / "run")) > 2  # noqa: E731
    tiny.wait_until(steps, "steps", program=program)
    assert len(group(program)) >= 3
    os.killpg(program.pid, signal.SIGTERM)
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait() == 75, (tmp_path / "log").read_text()
    check_all_gone(program)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{result['steps']:08d}"]


def test_workers_that_collate_end_with_a_run_that_is_killed(shared: Path, tmp_path: Path):
    values = tiny.settings(shared, tmp_path, train={"max_steps": 2000}, checkpoint={"every": 5000, "prove": "never"})
    values["data"]["num_workers"] = 2
    program = begin(tmp_path, values)
    metrics = tmp_path / "run/metrics.jsonl"
    steps = lambda: metrics.is_file() and len(tiny.steps(tmp_path / "run")) > 2  # noqa: E731
    tiny.wait_until(steps, "steps", program=program)
    program.kill()
    program.wait()
    check_all_gone(program)


def test_the_end_of_the_jobs_time_stops_the_run_without_a_signal(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    values = tiny.settings(shared, tmp_path, train={"max_steps": 100_000})
    values["checkpoint"] = {"every": 100_000, "before_end_s": 300, "prove": "never"}
    monkeypatch.setenv("FTSCALE_END_TIME", str(int(time.time()) + 302))
    outcome = tiny.command("train", tiny.write_run(tmp_path, values))
    assert outcome.code == 75, outcome.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "preempted"
    assert max(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == f"step-{result['steps']:08d}"
    assert "asked to stop (time limit)" in outcome.stderr
