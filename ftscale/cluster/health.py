"""The health check: what each node says of itself, and what shows when their reports are compared."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.base.sealed import write_text
from ftscale.config.load import config_digest
from ftscale.precheck import read_config

CHECK_FOLDER = "check"
WAIT_S = 30.0  # for the other nodes' reports; Python may start slowly from a network disk
REDUCE_S = 25.0
REDUCED_BYTES = 16 * 2**20
ROUNDS = 4
TEST_BYTES = 2**20  # written to the scratch disk
BUSY_SHARE = 0.1  # of a GPU's memory, in use before the job's own processes are there
SAME = ("ftscale", "torch", "python", "config")
"""What must be equal on all nodes."""

Report = dict[str, Any]


def check_node(folder: Path, run: Path, overrides: Sequence[str], *, scratch: str, min_free_gib: float) -> bool:
    """Write this node's report into the folder; where all nodes are well, also time an all-reduce among them.

    Returns whether this node is well.
    """
    name = os.environ["SLURMD_NODENAME"]
    report: Report = {
        "host": socket.gethostname(),
        "problems": [*_scratch_problems(scratch or tempfile.gettempdir(), min_free_gib), *_gpu_problems()],
        "ftscale": package_digest(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "config": _config_digest(run, overrides),
    }
    number = int(os.environ["SLURM_STEP_NUM_NODES"])
    if number > 1:
        import torch.distributed  # noqa: F401  # seconds on a busy disk: a node with a report is ready to be talked to
    write_text(folder / f"{name}.json", json.dumps(report))
    if number > 1 and _all_well(folder, number):
        try:
            report |= _reduce(int(os.environ["SLURM_NODEID"]), number)
        except (RuntimeError, OSError) as error:  # torch's DistError is a RuntimeError
            first = str(error).splitlines()[0]
            report["problems"].append(f"the all-reduce among the nodes failed: {first}")
        write_text(folder / f"{name}.json", json.dumps(report))
    return not report["problems"]


def compare_reports(reports: dict[str, Report], *, max_clock_skew_s: float) -> tuple[dict[str, list[str]], str]:
    """The bad nodes with their problems, and one line on all of them. reports: by node, {} where there is none."""
    bad = {name: list(report.get("problems", [])) for name, report in reports.items()}
    answered = {name: report for name, report in reports.items() if report}
    for name in reports.keys() - answered.keys():
        bad[name].append("did not answer")
    for what in SAME:
        values = Counter(report[what] for report in answered.values())
        usual = values.most_common(1)[0][0] if values else None
        for name, report in answered.items():
            if report[what] != usual:
                bad[name].append(f"another {what} ({report[what]}) than most nodes ({usual})")
    clocks = {name: report["clock"] for name, report in answered.items() if "clock" in report}
    for name, clock in clocks.items():
        skew = clock - statistics.median_low(clocks.values())
        if abs(skew) > max_clock_skew_s:
            bad[name].append(f"its clock is {skew:+.1f} s off")
    bad = {name: problems for name, problems in bad.items() if problems}
    speeds = [report["gib_per_s"] for report in answered.values() if "gib_per_s" in report]
    speed = f", all-reduce {min(speeds):.2f} GiB/s" if speeds else ""
    return bad, f"{len(reports) - len(bad)} of {len(reports)} nodes are well{speed}"


def _scratch_problems(scratch: str, min_free_gib: float) -> Iterator[str]:
    try:
        free = shutil.disk_usage(scratch).free / 2**30
        if free < min_free_gib:
            yield f"{free:.2f} GiB free on the scratch disk {scratch}, {min_free_gib:g} are asked for"
            return
        with tempfile.NamedTemporaryFile(dir=scratch) as file:
            file.write(bytes(TEST_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield f"cannot write to the scratch disk {scratch}: {error.strerror}"


def _gpu_problems() -> Iterator[str]:
    """Ask nvidia-smi for GPUs that are missing, used by others, of another size than most, or with memory errors."""
    expected = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    if not expected:
        return
    wanted = "index,memory.total,memory.used,ecc.errors.uncorrected.volatile.total,retired_pages.pending"
    try:
        lines = _nvidia_smi(f"--query-gpu={wanted}")
        remapped = _nvidia_smi("--query-remapped-rows=gpu_bus_id,remapped_rows.pending,remapped_rows.failure")
    except (OSError, subprocess.SubprocessError) as error:
        yield f"nvidia-smi does not answer: {error}"
        return
    if len(lines) < expected:
        yield f"{len(lines)} of {expected} GPUs are there"
    sizes = Counter(line[1] for line in lines)
    for index, total, used, uncorrected, retiring in lines:
        if total != sizes.most_common(1)[0][0]:
            yield f"GPU {index} has {total} MiB, the others {sizes.most_common(1)[0][0]}"
        if float(used) > BUSY_SHARE * float(total):
            yield f"GPU {index} is in use: {used} of {total} MiB"
        if uncorrected.isdecimal() and int(uncorrected):
            yield f"GPU {index} has {uncorrected} uncorrected memory errors"
        if retiring == "Yes":
            yield f"GPU {index} has memory pages to retire; it needs a reset"
    for bus, pending, failed in remapped:
        if "Yes" in (pending, failed) or "1" in (pending, failed):
            yield f"GPU {bus} has memory rows to remap; it needs a reset"


def _nvidia_smi(query: str) -> list[list[str]]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]


def _all_well(folder: Path, number: int) -> bool:
    """Wait for the reports of all nodes."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        reports = [_read(path) for path in folder.glob("*.json")]
        if any(report.get("problems") for report in reports):
            return False
        if len([report for report in reports if report]) == number:
            return True
        time.sleep(0.1)
    return False


def _reduce(rank: int, number: int) -> Report:
    """Time an all-reduce of one process a node; the clock is read when all have come out of it."""
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=number, timeout=timedelta(seconds=REDUCE_S))
    values = torch.ones(REDUCED_BYTES // 4, device="cuda" if cuda else "cpu")
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        dist.all_reduce(values)
        total = float(values[0])  # waits for the GPU
        seconds.append(time.perf_counter() - began)
    clock = time.time()
    dist.destroy_process_group()
    if total != float(number) ** ROUNDS:
        raise RuntimeError(f"the sum is {total:g} instead of {float(number) ** ROUNDS:g}")
    return {"clock": clock, "gib_per_s": REDUCED_BYTES / 2**30 / min(seconds)}


def package_digest() -> str:
    """A hash of ftscale's own files: two checkouts may have the same version."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.blake2b(digest_size=8)
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _config_digest(run: Path, overrides: Sequence[str]) -> str:
    try:
        return config_digest(read_config(run, overrides))[:16]
    except UserError as error:
        return str(error.problems[0])


def _read(path: Path) -> Report:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
