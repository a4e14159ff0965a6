"""The health check's comparison of nodes, and what it reads from nvidia-smi."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftscale.cluster.health import _gpu_problems, _scratch_problems, compare_reports

WELL = {"problems": [], "ftscale": "a", "torch": "2.13.0", "python": "3.11.7", "config": "c", "clock": 100.0}


def compare(**changed: dict[str, Any] | None) -> tuple[dict[str, list[str]], str]:
    reports: dict[str, dict[str, Any]] = {f"n{number}": dict(WELL) for number in range(1, 4)}
    for name, values in changed.items():
        reports[name] = {} if values is None else {**WELL, **values}
    return compare_reports(reports, max_clock_skew_s=5.0)


def test_equal_nodes_are_well():
    assert compare(n1={"gib_per_s": 2.0}, n2={"gib_per_s": 1.5}) == ({}, "3 of 3 nodes are well, all-reduce 1.50 GiB/s")


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (None, "did not answer"),
        ({"problems": ["its disk is full"]}, "its disk is full"),
        ({"torch": "2.12.0"}, "another torch (2.12.0) than most nodes (2.13.0)"),
        ({"ftscale": "b"}, "another ftscale (b) than most nodes (a)"),
        ({"config": "d"}, "another config (d) than most nodes (c)"),
        ({"clock": 160.0}, "its clock is +60.0 s off"),
        ({"clock": 40.0}, "its clock is -60.0 s off"),
    ],
)
def test_the_node_that_differs_is_named(report: dict[str, Any] | None, problem: str):
    assert compare(n2=report) == ({"n2": [problem]}, "2 of 3 nodes are well")


def test_small_differences_of_clocks_are_none():
    assert compare(n2={"clock": 104.0})[0] == {}


def test_a_scratch_disk_without_room_or_that_cannot_be_written_is_a_problem(tmp_path: Path):
    assert list(_scratch_problems(str(tmp_path), 0.0)) == []
    assert "GiB free on the scratch disk" in next(_scratch_problems(str(tmp_path), 1e9))
    (missing,) = _scratch_problems(str(tmp_path / "none"), 0.0)
    assert missing == f"cannot write to the scratch disk {tmp_path / 'none'}: No such file or directory"


# nvidia-smi's own output, as a program: failing hardware is not to be had
GPUS = "0, 81559, 4, 0, No\n1, 81559, 4, 0, No\n"
REMAPPED = "00000000:01:00.0, 0, 0\n00000000:02:00.0, 0, 0\n"


@pytest.mark.parametrize(
    ("gpus", "remapped", "problems"),
    [
        (GPUS, REMAPPED, []),
        ("0, 81559, 4, [N/A], [N/A]\n1, 81559, 4, [N/A], [N/A]\n", "", []),
        ("0, 81559, 4, 0, No\n", "", ["1 of 2 GPUs are there"]),
        (GPUS.replace("1, 81559, 4", "1, 81559, 40000"), "", ["GPU 1 is in use: 40000 of 81559 MiB"]),
        (GPUS.replace("4, 0, No\n1", "4, 7, No\n1"), "", ["GPU 0 has 7 uncorrected memory errors"]),
        (GPUS.replace("No\n1", "Yes\n1"), "", ["GPU 0 has memory pages to retire; it needs a reset"]),
        (
            GPUS,
            REMAPPED.replace("02:00.0, 0", "02:00.0, 1"),
            ["GPU 00000000:02:00.0 has memory rows to remap; it needs a reset"],
        ),
        (GPUS + "2, 40960, 4, 0, No\n", "", ["GPU 2 has 40960 MiB, the others 81559"]),
    ],
)
def test_gpus_that_are_not_fit_are_named(
    gpus: str, remapped: str, problems: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncase $1 in *remapped*) printf '{remapped}' ;; *) printf '{gpus}' ;; esac\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert list(_gpu_problems()) == problems


def test_without_nvidia_smi_a_node_with_gpus_is_bad(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert "nvidia-smi does not answer" in next(_gpu_problems())
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    assert list(_gpu_problems()) == []
