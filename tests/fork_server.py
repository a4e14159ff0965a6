"""Processes that have imported what runs need, and fork for each rank of a launch: a launch without a start.

    python fork_server.py FOLDER

Two of them, one above the other. FOLDER/clean answers with forks that have imported torch, transformers, accelerate,
peft and datasets, and never ftscale: what the proof of a saved model is run in. FOLDER/runs is itself such a fork, and
has imported DeepSpeed and ftscale too. Each answers on a socket of that name, a line of JSON there, and back (forks.py
asks) the process that waits for the forks, and how they ended.
What a fork cannot show is left to tests that start real processes: launchers, signals, faults, stops, Slurm.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

GRACE_S = 30.0  # as torchrun: from SIGTERM to SIGKILL for those that are left when one has failed
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Request = dict[str, Any]


def main(folder: Path) -> None:
    _end_with_parent()
    _import_libraries()
    if not os.fork():
        _end_with_parent()
        try:
            _import_ftscale()
        except BaseException:
            os.kill(os.getppid(), signal.SIGTERM)  # whoever waits for the servers is told
            raise
        _serve(folder / "runs")
    _serve(folder / "clean")


def _import_libraries() -> None:
    """What a saved model is loaded with, and nothing that starts a thread."""
    gc.disable()
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow's allocator
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # as ftscale.base.startup.start_quickly does
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama
    import transformers.models.mobilenet_v1.modeling_mobilenet_v1  # noqa: F401

    torch.set_num_threads(1)
    # torch makes its pool of threads anew in a fork, at the first use there; two threads that are first at once, as
    # transformers' that load weights, race for it ("Invalid thread pool!"): this is the first use, before any thread
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    _settle()


def _import_ftscale() -> None:
    """What a run imports on its way."""
    gc.disable()
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401
    import torch
    import transformers.optimization  # noqa: F401

    import ftscale.cli
    import ftscale.models.adapt
    import ftscale.models.save
    import ftscale.optim.optimizers
    import ftscale.optim.schedules
    import ftscale.run.evaluate
    import ftscale.run.export
    import ftscale.run.final_model
    import ftscale.run.predict
    import ftscale.run.prepared_data
    import ftscale.run.train  # noqa: F401

    assert not torch.distributed.is_initialized()
    _settle()


def _settle() -> None:
    os.environ.pop("TORCHDYNAMO_DISABLE", None)
    gc.freeze()
    gc.enable()
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    assert threading.active_count() == len(names) == 1, f"a fork of several threads is not safe: {names}"


def _serve(place: Path) -> None:
    """Answer until the process that started this one ends; each request has a process that waits for its ranks."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{place}.partial")
        listening.listen(64)
        os.rename(f"{place}.partial", place)
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rw") as lines:
                request = json.loads(lines.readline())
                _bury()
                if request["kind"] == "usage":
                    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
                    lines.write(json.dumps(spent.ru_utime + spent.ru_stime) + "\n")
                elif not os.fork():
                    _end_with_parent()
                    listening.close()
                    lines.write(f"{os.getpid()}\n")
                    lines.flush()
                    lines.write(json.dumps(_launch(request, connection)) + "\n")
                    lines.flush()
                    os._exit(0)


def _bury() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _launch(request: Request, connection: socket.socket) -> list[int]:
    """Fork the ranks and wait for them; where one fails, or nobody waits for them any more, the others are ended.

    Returns their exit codes, negative for a signal.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: dict[int, int] = {}
    for rank in range(request["processes"]):
        pid = os.fork()
        if not pid:
            _run(request, rank=rank, port=port)
        ranks[pid] = rank
    codes: dict[int, int] = {}
    ending: float | None = None
    while len(codes) < len(ranks):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        left = ranks.keys() - codes.keys()
        forsaken = bool(select.select([connection], [], [], 0 if pid else 0.01)[0])  # only its end can be read
        if forsaken or (ending is not None and time.monotonic() > ending):
            _send(left, signal.SIGKILL)
        elif ending is None and any(codes.values()):
            _send(left, signal.SIGTERM)
            ending = time.monotonic() + GRACE_S
    return [codes[pid] for pid in ranks]


def _run(request: Request, *, rank: int, port: int) -> None:
    """The rest of a rank's life, in a fork: a script's, a program's or a command's."""
    code = 1
    try:
        _end_with_parent()
        for name, number in (("stdout", 1), ("stderr", 2)):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(request["environment"])
        if request["kind"] == "ranks":
            world = str(request["processes"])
            values = (str(rank), str(rank), world, world, "127.0.0.1", str(port))
            os.environ.update(zip(LAUNCHER, values, strict=True))
        os.chdir(request["folder"])
        sys.argv = request["arguments"]
        _play(request)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _play(request: Request) -> None:
    if "program" in request:
        exec(compile(request["program"], "<string>", "exec"), {"__name__": "__main__"})
        return
    import forks

    import ftscale.models.prove

    ftscale.models.prove.fresh_python = forks.fresh_python
    if "script" in request:
        sys.path[0] = str(Path(request["script"]).parent)
        runpy.run_path(request["script"], run_name="__main__")
    else:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _send(processes: Any, number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
