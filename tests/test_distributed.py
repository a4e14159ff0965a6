from __future__ import annotations

import os
import threading
import time

import pytest

from ftscale import distributed
from ftscale.config import parse_config
from ftscale.config.schema import DistributedConfig
from ftscale.distributed import STRATEGIES, Distributed, check_takeover, resolve_strategy
from ftscale.errors import UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_CONFIG_FILE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def resolve(strategy: str | None = None) -> str:
    return resolve_strategy(DistributedConfig(strategy=strategy))


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


def test_runs_that_share_an_offload_dir_swap_into_folders_of_their_own():
    from ftscale.run import _in_own_offload_dir

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
    check_takeover("step-1", made_by=made_by, here=here)


def test_every_strategy_can_at_least_go_on_from_its_own_checkpoints():
    for strategy in STRATEGIES:
        check_takeover("step-1", made_by=(strategy, 2), here=(strategy, 2))


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
        check_takeover("step-1", made_by=made_by, here=here)


@pytest.mark.parametrize("age_s", [0.0, 2 * distributed.COMPILER_S])
def test_a_compiler_is_waited_for_and_what_a_killed_one_left_is_removed(monkeypatch, tmp_path, age_s: float):
    lock = tmp_path / "py311_cpu/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - age_s,) * 2)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    ended = []
    waiting = threading.Thread(target=lambda: (distributed._wait_for_compilers(), ended.append(lock.exists())))
    waiting.start()
    waiting.join(timeout=3)
    assert lock.exists() == waiting.is_alive() == (age_s == 0)  # one that compiles keeps its lock, and is waited for
    lock.unlink(missing_ok=True)
    waiting.join(timeout=30)
    assert ended == [False]
