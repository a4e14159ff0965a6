from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.schema import DistributedConfig
from ftscale.config.strategies import STRATEGIES
from ftscale.distributed import compilers
from ftscale.distributed.runtime import Distributed
from ftscale.distributed.strategy import check_takeover, resolve_strategy

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def resolve(strategy: str | None = None) -> str:
    return resolve_strategy(DistributedConfig(strategy=strategy)).name


def test_one_process_is_single_and_several_are_ddp_unless_said_otherwise(monkeypatch):
    assert resolve() == "single"
    assert resolve("zero2") == "zero2"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert resolve() == "ddp"


def test_the_launchers_deepspeed_config_names_the_strategy(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds_configs/zero3.json")
    assert resolve() == "zero3"
    with pytest.raises(UserError, match="zero2, but the launcher was started with zero3"):
        resolve("zero2")


def test_an_unknown_strategy_comes_with_the_nearest_known_one():
    with pytest.raises(UserError, match=r"distributed.strategy = 'zero_2' is not known; did you mean 'zero2'\?"):
        resolve("zero_2")


def test_single_with_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched; use ddp"):
        resolve("single")


def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(UserError, match="train.precision = fp16 needs a GPU"):
        Distributed(DistributedConfig(), precision="fp16", max_grad_norm=1.0)


def test_nvme_needs_a_folder():
    with pytest.raises(UserError, match="distributed.offload_dir"):
        Distributed(DistributedConfig(strategy="zero3_nvme"), precision="fp32", max_grad_norm=1.0)


def test_nvme_needs_libaio(monkeypatch, tmp_path):
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)  # as without the package
    with pytest.raises(UserError, match="zero3_nvme reads and writes by libaio, .* apt-get install libaio-dev"):
        Distributed(
            DistributedConfig(strategy="zero3_nvme", offload_dir=str(tmp_path)), precision="fp32", max_grad_norm=1.0
        )


def test_the_norm_of_a_large_dense_gradient_is_right():
    """Of the embedding of a masked language model, whose every row has a gradient; in double precision by numpy."""
    made = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=0.0)
    weight = torch.nn.Parameter(torch.zeros(30522, 64))
    weight.grad = 1e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.grad[5] += 0.3
    assert made._clip([weight]) == pytest.approx(np.linalg.norm(weight.grad.double().numpy()), rel=2e-6)
    made.close()


@pytest.mark.parametrize(("max_grad_norm", "expected"), [(0.5, [0.7, -0.4]), (0.0, [-2.0, -4.0]), (9.0, [-2.0, -4.0])])
def test_gradients_longer_than_the_limit_are_shortened_to_it(max_grad_norm: float, expected: list[float]):
    """The gradient of 3 a + 4 b is 5 long: an SGD step of rate 1 from (1, 0) takes it whole, or a tenth of it."""
    made = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=max_grad_norm)
    module = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0.0]]))
    made.prepare(module, torch.optim.SGD(module.parameters(), lr=1.0), unused_weights=False)
    for part in ([1.0, 4.0], [2.0, 0.0]):  # two micro-batches, whose gradients add up
        made.backward(made.module(torch.tensor([part])).sum(), last=part == [2.0, 0.0])
    assert made.step() == 5.0
    assert module.weight[0].tolist() == pytest.approx(expected, rel=1e-5)
    made.close()


def test_runs_that_share_an_offload_dir_swap_into_folders_of_their_own():
    from ftscale.run.train import _in_own_offload_dir

    def folder(run: str) -> str | None:
        rest = {"task": "causal_lm", "model": "m", "data": {"train": "t.jsonl"}}
        return _in_own_offload_dir(
            parse_config({**rest, "run_folder": run, "distributed": {"offload_dir": "/scratch"}}, source="test")
        ).offload_dir

    assert len({folder("runs/one"), folder("runs/two"), folder("other/one")}) == 3
    assert folder("runs/one") == folder("./runs/one")


@pytest.mark.parametrize(
    ("made_by", "here"),
    [
        (("single", 1), ("ddp", 4)),
        (("ddp", 4), ("single", 1)),
        (("zero1", 2), ("zero3", 3)),
        (("zero3_offload", 4), ("zero2_offload", 1)),
        (("zero3_nvme", 4), ("zero3_nvme", 4)),
    ],
)
def test_checkpoints_fit_other_numbers_of_processes_and_other_cuts_of_one_state(made_by, here):
    take_over(made_by, here)


def test_every_strategy_can_at_least_go_on_from_its_own_checkpoints():
    for name in STRATEGIES:
        take_over((name, 2), (name, 2))


def take_over(made_by: tuple[str, int], here: tuple[str, int]) -> None:
    check_takeover("step-1", made_by=made_by, here=(STRATEGIES[here[0]], here[1]))


@pytest.mark.parametrize(
    ("made_by", "here", "message"),
    [
        (("ddp", 2), ("zero2", 2), r"zero2 cannot go on from checkpoint step-1, .* with ddp: .* use single or ddp\."),
        (("zero2", 2), ("ddp", 2), r"ddp cannot go on .* with zero2: .* use zero1 or zero2 or zero3\."),
        (("zero2", 2), ("zero2_offload", 2), r"use zero1 or zero2 or zero3\."),
        (("zero3_nvme", 2), ("zero3_nvme", 3), r"made by 2 processes with zero3_nvme, .* resume with 2, not 3\."),
    ],
)
def test_a_checkpoint_that_cannot_be_taken_over_is_refused_with_what_can(made_by, here, message):
    with pytest.raises(UserError, match=message):
        take_over(made_by, here)


@pytest.fixture
def locks(monkeypatch, tmp_path) -> dict[str, Path]:
    """The lock of each operator as while it is compiled; whoever waits for the third time finds it gone."""
    compiling = {name: tmp_path / f"py311_cpu/{name}/lock" for name in ("deepspeed_shm_comm", "cpu_adam", "async_io")}
    for lock in compiling.values():
        lock.parent.mkdir(parents=True)
        lock.touch()
    waits = iter([None, None, compiling["cpu_adam"]])

    def wait(seconds: float) -> None:
        if compiled := next(waits):
            compiled.unlink()

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(compilers.time, "sleep", wait)
    return compiling


def test_a_compiler_of_what_is_needed_is_waited_for_and_no_other(locks):
    compilers.wait_for_compilers(["cpu_adam"])
    assert {name: lock.exists() for name, lock in locks.items()} == {
        "deepspeed_shm_comm": True,
        "cpu_adam": False,
        "async_io": True,
    }


def test_what_a_killed_compiler_left_is_removed_without_a_wait(locks, monkeypatch):
    monkeypatch.setattr(compilers.time, "sleep", lambda seconds: None)
    old = time.time() - 2 * compilers.COMPILER_S
    os.utime(locks["cpu_adam"], (old, old))
    compilers.wait_for_compilers(["cpu_adam"])
    assert not locks["cpu_adam"].exists()


@pytest.mark.parametrize(
    ("strategy", "operators"),
    [  # what DeepSpeed loads: tests/strategies/test_hanging.py
        ("zero1", ["deepspeed_shm_comm"]),
        ("zero3", ["deepspeed_shm_comm"]),
        ("zero2_offload", ["deepspeed_shm_comm", "cpu_adam"]),
        ("zero3_offload", ["deepspeed_shm_comm", "cpu_adam"]),
        ("zero3_nvme", ["deepspeed_shm_comm", "cpu_adam", "async_io"]),
    ],
)
def test_a_strategy_needs_its_own_operators_alone(strategy: str, operators: list[str]):
    assert compilers.operators(STRATEGIES[strategy], cuda=False) == operators
    assert compilers.operators(STRATEGIES[strategy], cuda=True) == operators[1:]
