"""The machine around Python: processors, memory, GPUs as their driver sees them, disks, Slurm, the way to the hub."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from ftscale.base.shown import shown
from ftscale.doctor.findings import Finding

PROGRAM_S = 10.0
"""How long another program may take to answer."""
HUB_S = 3.0
"""How long the hub may take to take a connection; the name of a host is asked for as well."""
LITTLE_BYTES = 5 * 2**30
NOTHING_BYTES = 100 * 2**20
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
TRUE = ("1", "on", "yes", "true")


def processors() -> Iterator[Finding]:
    """Tell the cores that this process may use, and the memory that it may have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("CPU cores", "ok", f"{cores} to use of {os.cpu_count()}", value=cores)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in CGROUPS if (text := _first_line(path)).isdecimal() and int(text) < memory]
    text = f"{memory / 2**30:.1f} GiB"
    if limits:
        text += f", of which a limit (cgroup) leaves {min(limits) / 2**30:.1f} GiB"
    yield Finding("memory", "ok", text, value=min([memory, *limits]))


def driver() -> Iterator[Finding]:
    """Tell the GPUs as their driver sees them, with the memory that others hold."""
    if shutil.which("nvidia-smi") is None:
        return
    wanted = "index,driver_version,memory.used,memory.total"
    lines = _said(["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]).splitlines()
    for line in lines:
        index, number, used, total = (part.strip() for part in line.split(","))
        yield Finding(f"GPU {index} by its driver", "ok", f"driver {number}, {used} of {total} MiB in use")


def disks() -> Iterator[Finding]:
    """Tell the free space where runs, prepared data, models of the hub and temporary files go; nothing is written."""
    places = {
        "disk for runs": Path.cwd(),
        "disk for prepared data": Path.home() / ".cache" / "ftscale",
        "disk for hub models": _hub_cache(),
        "disk for temporary": Path(tempfile.gettempdir()),
    }
    for name, wanted in places.items():
        folder = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
        free = shutil.disk_usage(folder).free
        text = f"{free / 2**30:.1f} GiB free in {wanted}"
        if not os.access(folder, os.W_OK | os.X_OK):
            fix = "change its permissions, or name another folder (run_folder, data.cache_dir, HF_HOME, TMPDIR)"
            yield Finding(name, "lacking", f"{wanted} cannot be written", fix, value=free)
        elif free < NOTHING_BYTES:
            yield Finding(name, "broken", text, "free some, or name a folder on another disk", value=free)
        elif free < LITTLE_BYTES:
            yield Finding(name, "lacking", text, "a checkpoint of a large model does not fit; free some", value=free)
        else:
            yield Finding(name, "ok", text, value=free)


def slurm() -> Iterator[Finding]:
    """Tell whether jobs can be submitted from here, and whether this is one."""
    if job := os.environ.get("SLURM_JOB_ID"):
        yield Finding("Slurm job", "note", f"this is job {job}", value=job)
    if shutil.which("sbatch") is None:
        yield Finding("Slurm", "note", "no sbatch here; only ftscale submit needs it", value=None)
        return
    try:
        found = _said(["sbatch", "--version"]).strip()
    except RuntimeError as error:
        yield Finding("Slurm", "note", f"sbatch is here and finds no cluster ({error})", "only ftscale submit needs it")
        return
    yield Finding("Slurm", "ok", found, value=found)


def hub() -> Iterator[Finding]:
    """Tell whether models and data sets of the hub can be fetched, and whether a token is there; never its value."""
    names = [name for name in TOKENS if os.environ.get(name, "").strip()]
    file = Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").expanduser()
    if not names and file.is_file() and file.stat().st_size:
        names = ["a file"]
    if names:
        yield Finding("hub token", "ok", f"there is one (by {names[0]})", value=True)
    else:
        fix = "hf auth login stores one"
        yield Finding("hub token", "note", "none, which private and gated models alone need", fix, value=False)
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_true(name)]
    if offline:
        text = f"off ({offline[0]} is set): models and data come from folders and from {_hub_cache()}"
        yield Finding("hub access", "note", text, f"unset {offline[0]} to fetch more", value="offline")
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    parts = urlsplit(endpoint)
    proxies = [name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)]
    if proxies:
        yield Finding("hub access", "note", f"through a proxy ({proxies[0]}), not tried", value="proxy")
    elif _answers(parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)):
        yield Finding("hub access", "ok", f"{shown(endpoint)} takes connections", value="online")
    else:
        fix = "name models and data by folders, and set HF_HUB_OFFLINE=1, which spares the waiting"
        yield Finding("hub access", "lacking", f"{shown(endpoint)} does not answer", fix, value="unreachable")


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError):
        return ""


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(last[0] if last else f"exit code {done.returncode}")
    return done.stdout


def _hub_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


def _hub_cache() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or _hub_home() / "hub").expanduser()


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in TRUE


def _answers(host: str, port: int) -> bool:
    """Whether a host takes a connection. In a thread: to ask for its name knows no time-out."""
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=HUB_S).close()
        except (OSError, ValueError):
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_S)
    return connected.is_set()
