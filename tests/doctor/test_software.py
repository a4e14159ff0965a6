"""Versions, and what torch says of a machine: as it is here, and as other machines would say it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from ftscale.doctor import software
from ftscale.doctor.findings import Finding

GPU = {
    "errors": {},
    "cuda": "12.8",
    "rocm": None,
    "devices": [{"name": "A100", "memory_bytes": 80 * 2**30, "capability": [8, 0]}] * 2,
    "bf16": True,
    "nccl": "2.27.3",
    "gloo": True,
    "flash_kernel": True,
}
CPU = {**GPU, "cuda": None, "devices": [], "bf16": False, "nccl": None, "flash_kernel": False}


def lines(told: dict[str, Any]) -> dict[str, Finding]:
    return {finding.name: finding for finding in software.torch_lines(told)}


def test_gpus_are_told_with_their_memory():
    found = lines(GPU)
    assert found["GPU 1"].text == "A100, 80.0 GiB"
    assert {found[name].state for name in ("GPU 0", "bf16", "NCCL", "gloo", "flash attention")} == {"ok"}
    old = lines({**GPU, "bf16": False, "flash_kernel": False, "nccl": None})
    assert (old["bf16"].state, old["bf16"].fix) == ("lacking", "use train.precision: fp16 or fp32")
    assert (old["NCCL"].state, old["flash attention"].state) == ("lacking", "note")


def test_a_torch_that_sees_no_gpu_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(software, "_program", lambda name: f"/usr/bin/{name}")
    assert lines(CPU)["GPU"].line.endswith("install torch for CUDA (pytorch.org, Get started)")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES = '' hides them" in lines({**CPU, "cuda": "12.8"})["GPU"].text
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert lines({**CPU, "cuda": "12.8"})["GPU"].fix == "where there is one, see that nvidia-smi lists it"
    assert lines({**CPU, "gloo": False})["gloo"].state == "lacking"
    odd = lines({**CPU, "errors": {"nccl": "RuntimeError: no driver"}})
    assert odd["torch: nccl"].state == "note"


def test_a_torch_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    shadow = tmp_path / "torch.py"
    shadow.write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = software.ask_torch()
    assert told == {"error": "ImportError: libcudart.so.12: cannot open shared object file"}
    [finding] = software.torch_lines(told)
    assert (finding.state, finding.fix) == ("broken", "install it anew, and ask the doctor again")
    shadow.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(software, "TORCH_S", 0.5)
    assert software.ask_torch() == {"error": "did not answer within 0 s"}


def test_versions_are_held_against_the_ranges_of_ftscale(monkeypatch: pytest.MonkeyPatch):
    found = {finding.name: finding for finding in software.packages()}
    assert list(found) == list(software.PACKAGES)
    assert {finding.state for finding in found.values()} == {"ok"}

    def other(name: str) -> str:
        if name in ("peft", "bitsandbytes"):
            raise PackageNotFoundError(name)
        return "2.1.0" if name == "torch" else version(name)

    monkeypatch.setattr(software, "version", other)
    found = {finding.name: finding for finding in software.packages()}
    assert (found["peft"].state, found["bitsandbytes"].state, found["torch"].state) == ("broken", "lacking", "lacking")
    assert found["peft"].fix == 'pip install "peft>=0.18"'
    assert found["torch"].text.startswith("2.1.0, and ftscale is made for")


def test_operators_are_compiled_or_can_be_or_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def told(name: str) -> Finding:
        [finding] = [finding for finding in software.compiled(CPU) if finding.text.startswith(name)]
        return finding

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(software, "_program", lambda name: None)
    assert told("cpu_adam").fix == "install g++ and ninja"
    assert told("cpu_adam").text.endswith("(for zero2_offload, zero3_offload, zero3_nvme)")
    monkeypatch.setattr(software, "_program", lambda name: f"/usr/bin/{name}")
    assert (told("cpu_adam").state, told("cpu_adam").value) == ("note", {"cpu_adam": False})
    (tmp_path / "py311_cpu/cpu_adam").mkdir(parents=True)
    (tmp_path / "py311_cpu/cpu_adam/cpu_adam.so").touch()
    assert (told("cpu_adam").state, told("deepspeed_shm_comm").state) == ("ok", "note")
    (tmp_path / "py311_cpu/cpu_adam/lock").touch()
    assert "a compiler was killed" in told("cpu_adam").text
    assert {path.name for path in tmp_path.rglob("*")} == {"py311_cpu", "cpu_adam", "cpu_adam.so", "lock"}
    assert not [finding for finding in software.compiled(GPU) if "shm_comm" in finding.text]  # of CPUs alone


def test_the_doctor_itself_imports_nothing_heavy():
    program = (
        "import sys, ftscale.doctor.report; print({'torch', 'numpy', 'transformers'} & sys.modules.keys() or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "none", done.stderr
