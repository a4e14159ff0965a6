"""One process, several runs: each is that of a fresh process, whatever ended before, and leaves no trace in it."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from strategies import jobs
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.llama.modeling_llama import LlamaMLP

import ftscale
from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.run.train import train
from ftscale.train.guard import NotFiniteError

Settings = typing.TypeVar("Settings")

SECOND = ("single", "zero3")

# each in a process of its own, which has imported everything and run nothing
FRESH = """
import json, os, sys
sys.path[:0] = sys.argv[1:3]
import deepspeed, test_two_runs, torch
torch.set_num_threads(1)
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))  # as in fork_server.py
config, work = json.loads(sys.argv[3]), sys.argv[4]
for strategy in test_two_runs.SECOND:
    if not (child := os.fork()):
        test_two_runs.run(config, test_two_runs.Path(work) / strategy, strategy)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def run(config: dict[str, Any], folder: Path, strategy: str, **sections: Any) -> str:
    """The status."""
    settings = {**config, **sections, "run_folder": str(folder), "distributed": {"strategy": strategy}}
    return train(parse_config(settings, source="test")).status


def figures(folder: Path) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in jobs.train_lines(folder)]


@pytest.fixture(scope="module")
def config(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two steps of one sequence each."""
    captions = jobs.captions(shared, tmp_path_factory.mktemp("cache"))
    captions["data"].pop("eval")
    return captions | {
        "batch": {"global_size": 1},
        "schedule": {"name": "constant"},
        "train": {"max_steps": 2},
        "evaluation": {},
        "checkpoint": {"every": 9, "prove": "never"},
    }


@pytest.fixture(scope="module")
def fresh(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[float, float]]]:
    """Loss and gradient norm of each step, of a process that has run nothing before."""
    work = tmp_path_factory.mktemp("fresh")
    places = [str(tiny.ROOT), str(tiny.ROOT / "tests")]
    command = [sys.executable, "-c", FRESH, *places, json.dumps(config), str(work)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {strategy: figures(work / strategy) for strategy in SECOND}


@pytest.fixture(scope="module", autouse=True)
def _port_in_use() -> Iterator[None]:
    """The port that everybody takes belongs to somebody else."""
    with socket.socket() as other:
        try:
            other.bind(("127.0.0.1", 29500))
            other.listen()
        except OSError:  # to somebody else indeed
            pass
        yield


def as_it_is() -> dict[str, Any]:
    """What a run could leave behind in a process."""
    from ftscale.base.logs import log

    return {
        "environment": dict(os.environ),
        "accelerate": [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)],
        "transformers": is_deepspeed_zero3_enabled(),
        "process group": torch.distributed.is_initialized(),
        "generators": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "levels": [logging.getLogger(name).level for name in ("bitsandbytes", "transformers")],
        "logging": (log.handlers[:], log.propagate, log.level, logging.root.handlers[:], logging.root.level),
        "torch": (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_device(),
        ),
        "functions": (torch.nn.functional.linear, torch.nn.Module.__init__, torch.nn.Module.__call__),
        "subclasses": "__init_subclass__" in vars(torch.nn.Module),
        "hooks": (dict(torch.nn.modules.module._global_forward_hooks), gc.isenabled()),
        "threads": {thread.name for thread in threading.enumerate() if thread.name.startswith("Thread-")},
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    }


# ---------------------------------------------------------------- how a run can end


def completed(patch: pytest.MonkeyPatch, go: Callable[..., str]) -> None:
    assert go() == "completed"


def not_finite(patch: pytest.MonkeyPatch, go: Callable[..., str]) -> None:
    with pytest.raises(NotFiniteError):
        go(optimizer={"name": "adamw", "lr": 1e30})


def in_a_forward(patch: pytest.MonkeyPatch, go: Callable[..., str]) -> None:
    patch.setattr(LlamaMLP, "forward", struck(LlamaMLP.forward))
    with pytest.raises(RuntimeError, match="struck"):
        go()


def struck(forward: Callable[..., Any], *, by: signal.Signals | None = None) -> Callable[..., Any]:
    """In the middle of the first step: in the third layer."""
    layers = iter(range(3))

    def strike(module: LlamaMLP, states: torch.Tensor) -> Any:
        if module.training and torch.is_grad_enabled() and next(layers, 0) == 2:  # no probe before the first step
            if by is None:
                raise RuntimeError("struck")
            signal.raise_signal(by)
        return forward(module, states)

    return strike


def makes_a_generic_module(patch: pytest.MonkeyPatch, go: Callable[..., str]) -> None:
    """As kornia at its import, which a batch of augmented images waits for."""

    def forward(module: LlamaMLP, states: torch.Tensor, plain: Callable[..., Any] = LlamaMLP.forward) -> Any:
        class Generic(torch.nn.Module, typing.Generic[Settings]): ...

        assert Generic[int]
        return plain(module, states)

    patch.setattr(LlamaMLP, "forward", forward)
    assert go() == "completed"


def stopped(patch: pytest.MonkeyPatch, go: Callable[..., str]) -> None:
    patch.setattr(LlamaMLP, "forward", struck(LlamaMLP.forward, by=signal.SIGTERM))
    assert go() == "preempted"


def refused_while_it_is_built(patch: pytest.MonkeyPatch, go: Callable[..., str]) -> None:
    with pytest.raises(UserError):
        go(adapter={"method": "lora", "target_modules": ["nosuch"]})


def interrupted_while_it_is_loaded(patch: pytest.MonkeyPatch, go: Callable[..., str]) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    patch.setattr(LlamaMLP, "__init__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        go()


@pytest.mark.parametrize(
    ("first", "end", "second"),
    [
        ("zero1", completed, "zero3"),
        ("zero3", completed, "single"),
        ("single", completed, "zero3"),
        ("zero1", not_finite, "single"),
        ("zero3", not_finite, "zero3"),
        ("single", in_a_forward, "single"),
        ("zero1", in_a_forward, "zero3"),
        ("zero3", in_a_forward, "single"),
        ("zero3", makes_a_generic_module, "single"),
        ("zero3", stopped, "single"),
        ("zero3", refused_while_it_is_built, "single"),
        ("zero3", interrupted_while_it_is_loaded, "zero3"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_run_after_another_is_that_of_a_fresh_process(
    config: dict[str, Any], fresh: dict[str, Any], tmp_path: Path, first: str, end: Callable[..., None], second: str
):
    before = as_it_is()
    with pytest.MonkeyPatch.context() as patch:
        end(patch, lambda **sections: run(config, tmp_path / "first", first, **sections))
    assert as_it_is() == before
    assert run(config, tmp_path / "second", second) == "completed"
    assert as_it_is() == before
    assert figures(tmp_path / "second") == fresh[second]
    assert fresh[second][1][1] > 0


def test_what_the_caller_has_set_up_does_not_count_and_is_there_afterwards(
    config: dict[str, Any], fresh: dict[str, Any], tmp_path: Path
):
    from accelerate import Accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", os.environ)
        accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
        torch.set_default_dtype(torch.float64)
        try:
            before = as_it_is()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                run(config, tmp_path / "run", "single")
            assert as_it_is() == before
            assert accelerator.mixed_precision == "bf16"
        finally:
            torch.set_default_dtype(torch.float32)
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
    assert figures(tmp_path / "run") == fresh["single"]


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_gradients_are_not_the_callers_to_turn_off(
    config: dict[str, Any], fresh: dict[str, Any], tmp_path: Path, within: Callable[[], Any]
):
    with within():
        assert run(config, tmp_path / "run", "single") == "completed"
        assert not torch.is_grad_enabled()
    assert figures(tmp_path / "run") == fresh["single"]


def test_a_thread_trains_without_signals_and_says_so(
    config: dict[str, Any], fresh: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    thread = threading.Thread(target=run, args=(config, tmp_path / "run", "single"))
    thread.start()
    thread.join()
    assert figures(tmp_path / "run") == fresh["single"]
    assert jobs.result(tmp_path / "run")["status"] == "completed"
    assert "training in a thread: signals are not noticed" in capsys.readouterr().err


def test_the_packages_own_train_leaves_the_environment_too(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)
    before = as_it_is()
    settings = {**config, "run_folder": str(tmp_path / "run"), "data": {"train": str(tmp_path / "none.csv")}}
    with pytest.raises(UserError):
        ftscale.train(parse_config(settings, source="test"))
    assert as_it_is() == before


def test_workers_that_collate_end_with_a_run_that_fails(config: dict[str, Any], tmp_path: Path):
    before, workers = as_it_is()["children"], {**config["data"], "num_workers": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaMLP, "forward", struck(LlamaMLP.forward))
        with pytest.raises(RuntimeError, match="struck") as kept:
            run(config, tmp_path / "run", "single", data=workers)
    assert kept.tb is not None  # the error still holds the run's frames
    assert as_it_is()["children"] == before
    about = json.loads((tmp_path / "run/logs/failure.json").read_text())
    assert about["error"] == "RuntimeError: struck"
    assert "struck" in (tmp_path / "run/logs/rank-00000.log").read_text()
