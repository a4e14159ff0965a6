"""Versions, and what torch, DeepSpeed and attention kernels can do; nothing heavy is imported here."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftscale.config.strategies import STRATEGIES
from ftscale.distributed.compilers import operators
from ftscale.doctor.findings import Finding
from ftscale.doctor.torch_child import MARK
from ftscale.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "datasets", "evaluate")
NEEDED = ("torch", "transformers", "accelerate", "peft", "datasets", "evaluate")
"""Those without which nothing trains; the others are for ZeRO, quantised weights and 8-bit optimizers."""
TORCH_S = 120.0
"""How long torch may take to say what it has: on a busy network disk its import takes a minute."""


def python() -> Iterator[Finding]:
    """Tell the versions of Python and ftscale, and the system."""
    text = f"{platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}"
    yield Finding("python", "ok", text, value=platform.python_version())
    yield Finding("ftscale", "ok", __version__, value=__version__)


def packages() -> Iterator[Finding]:
    """Tell each library's version, and whether it is in the range that ftscale is made for."""
    ranges = _ranges()
    for name in PACKAGES:
        wanted = ranges.get(name)
        install = f'pip install "{name}{wanted}"' if wanted else f"pip install {name}"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "broken" if name in NEEDED else "lacking", "is not installed", install)
            continue
        if wanted is not None and not wanted.contains(found, prereleases=True):
            yield Finding(name, "lacking", f"{found}, and ftscale is made for {wanted}", install, value=found)
        else:
            yield Finding(name, "ok", found, value=found)


def ask_torch() -> dict[str, Any]:
    """Return what torch says of this machine, in a process of its own.

    `error`: why it said nothing, and then nothing else; `errors`: what it could not tell, by name.
    """
    program = Path(__file__).with_name("torch_child.py")
    try:
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=TORCH_S)
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {TORCH_S:.0f} s"}
    except OSError as error:
        return {"error": f"cannot be started: {error.strerror}"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if lines:
        return json.loads(lines[-1].removeprefix(MARK))
    said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return {"error": said[0]}


def torch_lines(told: dict[str, Any]) -> Iterator[Finding]:
    """Say what `ask_torch` returned: devices, half precision, collectives, attention."""
    if "error" in told:
        yield Finding("torch imports", "broken", f"no: {told['error']}", "install it anew, and ask the doctor again")
        return
    for name, said in told["errors"].items():
        yield Finding(f"torch: {name}", "note", f"cannot be told ({said})", "put this line into a bug report")
    devices = told["devices"] or []
    yield from _devices(told, devices)
    yield _bf16(told, devices)
    yield from _collectives(told, devices)
    yield _attention(told, devices)


def compiled(told: dict[str, Any]) -> Iterator[Finding]:
    """Tell which of DeepSpeed's operators are compiled, and whether the others can be."""
    if find_spec("deepspeed") is None:
        return  # said among the versions
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or told.get("extensions")
    if root is None:
        yield Finding("DeepSpeed operators", "note", "not looked for, since torch does not say where they are compiled")
        return
    cuda = bool(told.get("devices"))
    names = dict.fromkeys(name for strategy in STRATEGIES.values() for name in operators(strategy, cuda=cuda))
    lacking = [name for name in ("g++", "ninja") if _program(name) is None]
    for name in names:
        zero = [strategy for strategy in STRATEGIES.values() if strategy.is_zero]
        for_whom = f"for {', '.join(item.name for item in zero if name in operators(item, cuda=cuda))}"
        if list(Path(root).glob(f"**/{name}/lock")):
            text = f"{name} is being compiled, or a compiler was killed ({for_whom})"
            yield Finding("DeepSpeed operator", "note", text, "the next run that needs it waits, and clears it up")
        elif list(Path(root).glob(f"**/{name}/{name}.so")):
            yield Finding("DeepSpeed operator", "ok", f"{name} is compiled ({for_whom})", value={name: True})
        elif lacking:
            fix = f"install {' and '.join(lacking)}"
            text = f"{name} is not compiled, and cannot be without {' and '.join(lacking)} ({for_whom})"
            yield Finding("DeepSpeed operator", "lacking", text, fix, value={name: False})
        elif name == "async_io" and not Path("/usr/include/libaio.h").exists():
            text = f"{name} is not compiled, and cannot be without libaio ({for_whom})"
            yield Finding("DeepSpeed operator", "lacking", text, "install libaio-dev", value={name: False})
        else:
            text = f"{name} is not compiled yet ({for_whom}): the first run that needs it does, in a minute or two"
            yield Finding("DeepSpeed operator", "note", text, value={name: False})


def _ranges() -> dict[str, Any]:
    """The range of versions of each of ftscale's dependencies, where ftscale is installed."""
    from packaging.requirements import Requirement

    try:
        found = [Requirement(text) for text in requires("ftscale") or ()]
    except PackageNotFoundError:
        return {}
    return {item.name: item.specifier for item in found if not item.marker or "extra" not in str(item.marker)}


def _program(name: str) -> str | None:
    """Where a program is, beside this Python too: pip puts ninja there."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _devices(told: dict[str, Any], devices: list[dict[str, Any]]) -> Iterator[Finding]:
    built = f"CUDA {told['cuda']}" if told["cuda"] else f"ROCm {told['rocm']}" if told["rocm"] else None
    for number, device in enumerate(devices):
        text = f"{device['name']}, {device['memory_bytes'] / 2**30:.1f} GiB"
        yield Finding(f"GPU {number}", "ok", text, value=device)
    if devices:
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if built is None:
        there = Path("/dev/nvidia0").exists() or _program("nvidia-smi") is not None
        fix = "install torch for CUDA (pytorch.org, Get started)" if there else ""
        text = "there is a GPU, and this torch is built for CPUs alone" if there else "none; training runs on the CPU"
        yield Finding("GPU", "lacking" if there else "note", text, fix, value=[])
    elif hidden is not None and hidden.strip() in ("", "-1"):
        text = f"none to be seen: CUDA_VISIBLE_DEVICES = {hidden!r} hides them"
        yield Finding("GPU", "lacking", text, "unset it to train on GPUs", value=[])
    else:
        text = f"torch is built for {built} and finds none; training runs on the CPU"
        yield Finding("GPU", "note", text, "where there is one, see that nvidia-smi lists it", value=[])


def _bf16(told: dict[str, Any], devices: list[dict[str, Any]]) -> Finding:
    if devices:
        if told["bf16"]:
            return Finding("bf16", "ok", "computed by the GPU itself", value=True)
        fix = "use train.precision: fp16 or fp32"
        return Finding("bf16", "lacking", "this GPU computes it slowly by other means", fix, value=False)
    fast = _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}
    text = f"works on the CPU, fast ({', '.join(sorted(fast))})" if fast else "works on the CPU, no faster than fp32"
    return Finding("bf16", "ok" if fast else "note", text, value=True)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}


def _collectives(told: dict[str, Any], devices: list[dict[str, Any]]) -> Iterator[Finding]:
    if told["nccl"]:
        yield Finding("NCCL", "ok", f"{told['nccl']}, for several GPUs", value=told["nccl"])
    else:
        fix = "install torch for CUDA to train on several GPUs" if len(devices) > 1 else ""
        text = "not in this torch; only several GPUs need it"
        yield Finding("NCCL", "lacking" if fix else "note", text, fix, value=None)
    if told["gloo"]:
        yield Finding("gloo", "ok", "for several processes on CPUs", value=True)
    else:
        text = "not in this torch; several processes on CPUs need it"
        yield Finding("gloo", "note" if devices else "lacking", text, "train by one process" if not devices else "")


def _attention(told: dict[str, Any], devices: list[dict[str, Any]]) -> Finding:
    package = f"; the package flash-attn {version('flash-attn')} too" if find_spec("flash_attn") else ""
    if not devices:
        return Finding("flash attention", "note", f"for GPUs; CPUs have kernels of their own{package}", value=False)
    if told["flash_kernel"]:
        return Finding("flash attention", "ok", f"torch's kernel for flat rows{package}", value=True)
    text = f"torch's kernel for flat rows does not run on this GPU or in this torch{package}"
    return Finding("flash attention", "note", text, "batch.layout: padded trains all the same", value=False)
