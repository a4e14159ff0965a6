"""Asks the fork server (`fork_server.py`) of this process for ranks, commands and fresh Pythons.

A test that asks for numbers gets forks; one whose subject is a process starts it. FTSCALE_REAL_STARTS=1 (launch/test.sh
--all) has all of them started.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "FTSCALE_FORK_SERVER"
"""Where the sockets lie: handed down, so that a forked rank asks the server that it comes from."""

Completed = subprocess.CompletedProcess


def real_starts() -> bool:
    return os.environ.get("FTSCALE_REAL_STARTS") == "1"


def run_ranks(script: Path, arguments: list[str], *, processes: int, environment: Mapping[str, str]) -> Completed[str]:
    """The script in so many ranks, as torchrun starts it: 1 where one of them fails."""
    request = {"kind": "ranks", "script": str(script), "arguments": [str(script), *arguments]}
    return _ask("runs", request, processes=processes, environment=environment)


def run_module(
    module: str, arguments: list[str], *, environment: Mapping[str, str], folder: Path = ROOT, processes: int = 1
) -> Completed[str]:
    """`python -m MODULE ARGUMENTS`; as ranks where there are several processes."""
    kind = "ranks" if processes > 1 else "command"
    request = {"kind": kind, "module": module, "arguments": [module, *arguments]}
    return _ask("runs", request, processes=processes, environment=environment, folder=folder)


def fresh_python(program: str, *arguments: str, environment: Mapping[str, str]) -> Completed[str]:
    """`python -c PROGRAM ARGUMENTS` in a process that has never imported ftscale."""
    request = {"kind": "command", "program": program, "arguments": ["-c", *arguments]}
    return _ask("clean", request, processes=1, environment=environment)


def processor_seconds() -> float:
    """What all forks of this process's server that have ended took."""
    if FOLDER not in os.environ:
        return 0.0
    spent = 0.0
    for server in ("clean", "runs"):
        with _connected(server) as lines:
            lines.write(json.dumps({"kind": "usage"}) + "\n")
            lines.flush()
            spent += json.loads(lines.readline())
    return spent


def _ask(
    server: str,
    request: dict[str, Any],
    *,
    processes: int,
    environment: Mapping[str, str],
    folder: Path = ROOT,
) -> Completed[str]:
    with tempfile.TemporaryDirectory(prefix="ftscale-fork-") as made:
        outputs = {name: Path(made) / name for name in ("stdout", "stderr")}
        whole = {
            **request,
            "processes": processes,
            "environment": dict(environment),
            "folder": str(folder),
            **{name: str(path) for name, path in outputs.items()},
        }
        with _connected(server) as lines:
            lines.write(json.dumps(whole) + "\n")
            lines.flush()
            answer = lines.readline()
        assert answer, f"the fork server of {server} ended"
        codes = json.loads(answer)
        said = {name: path.read_text(errors="replace") if path.is_file() else "" for name, path in outputs.items()}
    code = codes[0] if processes == 1 else int(any(codes))
    return Completed(request["arguments"], code, said["stdout"], said["stderr"])


@contextmanager
def _connected(server: str) -> Any:
    place = _folder() / server
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place))
        with connection.makefile("rw") as lines:
            yield lines


def _folder() -> Path:
    """Of the server's sockets; the server is started when it is first asked for."""
    if FOLDER not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="ftscale-forks-"))  # short, for unix sockets
        command = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(folder)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", FOLDER: str(folder)}
        variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        process = subprocess.Popen(command, env=variables, cwd=ROOT)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        while not all((folder / server).exists() for server in ("clean", "runs")):
            assert process.poll() is None, "the fork server did not start"
            time.sleep(0.02)
        os.environ[FOLDER] = str(folder)
    return Path(os.environ[FOLDER])
