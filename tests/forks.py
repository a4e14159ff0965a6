"""Asks the fork server (`fork_server.py`) of this process for ranks, commands and fresh Pythons.

A test that asks for numbers gets forks; one whose subject is a process starts it. FTSCALE_REAL_STARTS=1 (launch/test.sh
--all) has all of them started.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

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


def start_ranks(
    module: str, arguments: list[str], *, environment: Mapping[str, str], output: Path, processes: int
) -> Launch:
    """`python -m MODULE ARGUMENTS` in so many ranks, not waited for; what they say is added to `output`."""
    request = {"kind": "ranks", "module": module, "arguments": [module, *arguments]}
    whole = _whole(request, processes=processes, environment=environment, folder=ROOT, stdout=output, stderr=output)
    return Launch("runs", whole)


class Launch:
    """Forks that are under way, with what a test needs of subprocess.Popen; they end with the process that waits."""

    def __init__(self, server: str, request: dict[str, Any]) -> None:
        self._connection, self._lines = _connect(server)
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        first = self._lines.readline()
        assert first, f"the fork server of {server} ended"
        self.pid = int(first)
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, 1 where one of several ranks failed, -9 where their parent was killed; None = not yet."""
        if self._code is None and select.select([self._connection], [], [], 0)[0]:
            self._code = self._read()
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Until they have ended. Raises subprocess.TimeoutExpired."""
        if self._code is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("forks", timeout or 0.0)
            self._code = self._read()
        return self._code

    def _read(self) -> int:
        answer = self._lines.readline()
        self._lines.close()
        self._connection.close()
        codes = json.loads(answer) if answer else [-signal.SIGKILL]
        return codes[0] if len(codes) == 1 else int(any(codes))


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
        connection, lines = _connect(server)
        with connection, lines:
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
        whole = _whole(request, processes=processes, environment=environment, folder=folder, **outputs)
        code = Launch(server, whole).wait()
        said = {name: path.read_text(errors="replace") if path.is_file() else "" for name, path in outputs.items()}
    return Completed(request["arguments"], code, said["stdout"], said["stderr"])


def _whole(
    request: dict[str, Any], *, processes: int, environment: Mapping[str, str], folder: Path, **outputs: Path
) -> dict[str, Any]:
    return {
        **request,
        "processes": processes,
        "environment": dict(environment),
        "folder": str(folder),
        **{name: str(path) for name, path in outputs.items()},
    }


def _connect(server: str) -> tuple[socket.socket, TextIO]:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(_folder() / server))
    return connection, connection.makefile("rw")


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
