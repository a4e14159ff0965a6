"""The command: a line each, JSON for bug reports, its exit code, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from ftscale.doctor import report, software


def test_this_machine_can_train_and_each_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    done = tiny.command("doctor", "--json")
    assert (done.code, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["can_train"] is True
    names = [finding["name"] for finding in told["findings"]]
    assert set(names) >= {"python", "ftscale", *software.PACKAGES, "CPU cores", "memory", "bf16", "gloo", "NCCL"}
    assert set(names) >= {"flash attention", "DeepSpeed operator", "Slurm", "disk for runs", "hub token", "hub access"}
    assert "verysecret" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("told", "code", "verdict"),
    [
        ({"error": "ImportError: no"}, 2, "nothing can be trained here before this is mended: torch imports"),
        ({"odd": True}, 0, "training works here"),
    ],
)
def test_without_torch_it_ends_with_2_and_an_odd_answer_is_a_line(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], code: int, verdict: str
):
    monkeypatch.setattr(report.software, "ask_torch", lambda: told)
    done = tiny.command("doctor")
    assert done.code == code
    *lines, last = done.stdout.splitlines()
    assert last.startswith(verdict)
    assert all(line.split()[0] in ("ok", "note", "lacking", "broken") for line in lines)
    assert any("cannot be told (KeyError" in line for line in lines) is ("odd" in told)
