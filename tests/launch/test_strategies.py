"""The named strategies: an Accelerate file each, its DeepSpeed JSON, and what the package knows of them, agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from ftscale.base.errors import UserError
from ftscale.base.resources import resource, strategies, strategy_file
from ftscale.config.schema import DistributedConfig
from ftscale.config.strategies import STRATEGIES

ZERO = [name for name in STRATEGIES if name.startswith("zero")]

FIELDS_OF_FTSCALE = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)


def deepspeed(name: str) -> dict:
    return json.loads(resource("ds_configs", f"{name}.json").read_text())


def test_files_table_and_description_name_the_same_strategies():
    described = DistributedConfig.model_fields["strategy"].description.split(";")[0].split(", ")
    assert sorted(described) == sorted(STRATEGIES) == list(strategies())
    assert sorted(path.stem for path in resource("ds_configs").glob("*.json")) == sorted(ZERO)


@pytest.mark.parametrize("name", STRATEGIES)
def test_accelerate_reads_each_file(name: str):
    settings = load_config_from_file(str(strategy_file(name)))
    expected = {"single": DistributedType.NO, "ddp": DistributedType.MULTI_GPU}.get(name, DistributedType.DEEPSPEED)
    assert settings.distributed_type == expected
    # the number of processes is the user's to give
    assert settings.num_processes == (1 if name == "single" else -1)


@pytest.mark.parametrize("name", ZERO)
def test_no_deepspeed_value_stands_in_both_files(name: str):
    written = yaml.safe_load(strategy_file(name).read_text())["deepspeed_config"]
    assert written == {"deepspeed_config_file": f"ds_configs/{name}.json", "zero3_init_flag": False}
    assert STRATEGIES[name].file == f"{name}.json"


@pytest.mark.parametrize("name", ZERO)
def test_what_ftscale_sets_is_auto_in_the_json(name: str):
    settings = deepspeed(name)
    assert {key: settings[key] for key in FIELDS_OF_FTSCALE} == dict.fromkeys(FIELDS_OF_FTSCALE, "auto")
    assert (settings["bf16"]["enabled"], settings["fp16"]["enabled"]) == ("auto", "auto")
    assert settings["zero_allow_untested_optimizer"] is True  # 8-bit optimizers
    assert "optimizer" not in settings
    assert "scheduler" not in settings


@pytest.mark.parametrize("name", ZERO)
def test_stage_and_offload_are_those_of_the_name(name: str):
    zero = deepspeed(name)["zero_optimization"]
    device = {"offload": "cpu", "nvme": "nvme"}.get(name.partition("_")[2])
    assert zero["stage"] == int(name[4])
    assert zero.get("offload_optimizer", {}).get("device") == device
    assert zero.get("offload_param", {}).get("device") == (device if zero["stage"] == 3 else None)
    if device == "nvme":
        assert zero["offload_optimizer"]["nvme_path"] == zero["offload_param"]["nvme_path"] == "auto"
    if zero["stage"] == 3:
        assert zero["stage3_gather_16bit_weights_on_model_save"] is True


def test_an_unknown_strategy_comes_with_the_nearest():
    with pytest.raises(UserError, match="strategy = 'zero-2' is not known; did you mean 'zero2'"):
        strategy_file("zero-2")


def test_a_resource_that_is_not_shipped_is_an_error():
    with pytest.raises(FileNotFoundError, match="ds_configs/zero9.json is not part of this installation"):
        resource("ds_configs", "zero9.json")


def test_in_a_checkout_the_files_of_the_checkout_are_read():
    assert resource("launch") == Path(__file__).resolve().parents[2] / "launch"
