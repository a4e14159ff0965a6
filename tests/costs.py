"""What each test file costs, processor seconds and wall time: a table at the end of a run, and a file of results.

    python tests/costs.py benchmarks/results/tests.json     prints the table of a run

Processor seconds are those of the tests' process, of the processes it started and waited for, and of its fork server's.
Daemons, as Slurm's with their jobs, are no children: their files have their wall time alone.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "FTSCALE_TEST_RESULTS"
"""The file that takes up what the run found, beside what an earlier call put there; unset = none is written."""

Costs = dict[str, Counter[str]]


class Meter:
    """What has been spent since the last look."""

    def __init__(self) -> None:
        self._seen = self._now()

    def lap(self) -> dict[str, float]:
        before, self._seen = self._seen, self._now()
        return {name: self._seen[name] - before[name] for name in before}

    @staticmethod
    def _now() -> dict[str, float]:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        processor = sum(used.ru_utime + used.ru_stime for used in both) + forks.processor_seconds()
        return {"processor_s": processor, "wall_s": time.monotonic()}


_meters: list[Meter] = []
_costs: Costs = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if not _meters:  # imports and collection are nobody's
        _meters.append(Meter())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "teardown":
        report.user_properties.append(("cost", _meters[0].lap()))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = _costs.setdefault(report.nodeid.partition("::")[0], Counter())
    if report.when == "call" or report.outcome != "passed":
        file[report.outcome] += 1
    for name, value in report.user_properties:
        if name == "cost":
            file.update(value)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if RESULTS in os.environ and "PYTEST_XDIST_WORKER" not in os.environ and _costs:
        with FileLock(Path(tempfile.gettempdir()) / "ftscale-test-results.lock"):  # Slurm's tests may end beside others
            write(Path(os.environ[RESULTS]), _costs)


def write(path: Path, costs: Costs) -> None:
    """One line a file; beside those of an earlier call of pytest for the same commit."""
    about = {"commit": _commit(), "command": os.environ.get("FTSCALE_TEST_COMMAND", ""), "hardware": _hardware()}
    stored = json.loads(path.read_text()) if path.is_file() else {}
    files = stored.get("files", {}) if stored.get("commit") == about["commit"] else {}
    for file, cost in costs.items():
        numbers = {name: cost[name] for name in ("passed", "failed", "skipped")}
        seconds = {name: round(cost[name], 1) for name in ("processor_s", "wall_s")}
        files[file] = {**numbers, **seconds}
    lines = ",\n".join(f"  {json.dumps(file)}: {json.dumps(files[file])}" for file in sorted(files))
    head = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in about.items())
    path.write_text(f'{{\n{head} "files": {{\n{lines}\n }}\n}}\n')


def table(record: dict[str, Any]) -> Iterator[str]:
    """The dearest file first, the sum last."""
    columns = ("processor_s", "wall_s", "passed", "failed", "skipped")
    yield "".join(f"{name:>12}" for name in columns) + "  file"
    files = record["files"]
    for file in sorted(files, key=lambda file: -max(files[file]["processor_s"], files[file]["wall_s"])):
        yield "".join(f"{files[file][name]:12}" for name in columns) + f"  {file}"
    sums = {name: round(sum(cost[name] for cost in files.values()), 1) for name in columns}
    yield "".join(f"{sums[name]:12}" for name in columns) + f"  all, on {record['hardware']}"


def _commit() -> str:
    """With -dirty where more differs from it than results."""
    commit, changed = (
        subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=False).stdout.strip()
        for command in (
            ("rev-parse", "--short", "HEAD"),
            ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"),
        )
    )
    return f"{commit}-dirty" if changed else commit


def _hardware() -> str:
    import torch

    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    print(*table(json.loads(Path(sys.argv[1]).read_text())), sep="\n")
