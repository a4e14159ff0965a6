from __future__ import annotations

import pytest

from ftscale.config.schema import DistributedConfig
from ftscale.distributed import Distributed, resolve_strategy
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
