"""Disks, Slurm, the driver and the hub of machines that are not this one."""

from __future__ import annotations

import socket
import stat
from collections import namedtuple
from pathlib import Path

import pytest
import tiny

from ftscale.doctor import machine
from ftscale.doctor.findings import Finding, Probe, ask

Usage = namedtuple("Usage", "total used free")
HUB = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")


def found(probe: Probe) -> dict[str, Finding]:
    return {finding.name: finding for finding in ask("it", probe)}


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def _hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*HUB, "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "all_proxy", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_disks_are_told_by_what_is_free_and_nothing_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub/deep"))
    monkeypatch.chdir(tmp_path)
    for free, state in ((2**40, "ok"), (2**30, "lacking"), (2**20, "broken")):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: Usage(2**41, 0, free))
        lines = found(machine.disks)
        assert {lines[name].state for name in ("disk for runs", "disk for hub models")} == {state}
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "cannot be written" in found(machine.disks)["disk for runs"].text
    assert list(tmp_path.iterdir()) == []


def test_slurm_is_there_or_not_or_without_its_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    lines = found(machine.slurm)
    assert (lines["Slurm"].state, lines["Slurm job"].value) == ("note", "77")
    program(tmp_path, "sbatch", "echo slurm 23.11.4")
    assert found(machine.slurm)["Slurm"].line.endswith("slurm 23.11.4")
    program(tmp_path, "sbatch", "echo fatal: no configuration >&2; exit 1")
    assert "finds no cluster (fatal: no configuration)" in found(machine.slurm)["Slurm"].text


def test_the_driver_is_asked_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found(machine.driver) == {}
    program(tmp_path, "nvidia-smi", "echo 0, 570.86, 1024, 81920")
    assert found(machine.driver)["GPU 0 by its driver"].text == "driver 570.86, 1024 of 81920 MiB in use"
    program(tmp_path, "nvidia-smi", "echo it is odd; exit 9")
    assert "RuntimeError: it is odd" in found(machine.driver)["it"].text


def test_processors_and_memory_are_told_with_the_limit_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    monkeypatch.setattr(machine, "CGROUPS", (str(tmp_path / "memory.max"), "/nowhere"))
    lines = found(machine.processors)
    assert lines["CPU cores"].value >= 1
    assert lines["memory"].text.endswith("of which a limit (cgroup) leaves 0.2 GiB")


@pytest.mark.usefixtures("_hub")
def test_a_token_is_there_or_not_and_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = found(machine.hub)
    assert (lines["hub token"].value, lines["hub access"].value) == (False, "offline")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text("hf_verysecret")
    assert found(machine.hub)["hub token"].text == "there is one (by a file)"
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    lines = found(machine.hub)
    assert lines["hub token"].text == "there is one (by HF_TOKEN)"
    assert "verysecret" not in str(lines)


@pytest.mark.usefixtures("_hub")
def test_the_hub_answers_or_not_or_is_behind_a_proxy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "HUB_S", float(tiny.PATIENCE_S))
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://me:verysecret@127.0.0.1:{server.getsockname()[1]}")
        lines = found(machine.hub)
        assert lines["hub access"].value == "online"
        assert "verysecret" not in str(lines)
    assert found(machine.hub)["hub access"].value == "unreachable"  # the same port, closed
    monkeypatch.setenv("HTTPS_PROXY", "http://me:verysecret@proxy:3128")
    lines = found(machine.hub)
    assert (lines["hub access"].value, "verysecret" in str(lines)) == ("proxy", False)
