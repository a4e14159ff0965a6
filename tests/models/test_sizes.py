"""Sizes out of all proportion, in configs of models and adapters: one sentence, before memory or time is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from ftscale.base.errors import UserError
from ftscale.checks import model as check_of_model
from ftscale.config.schema import AdapterConfig, ModelConfig
from ftscale.models.adapt import apply_adapter, build_peft_config
from ftscale.models.load import load_model, load_model_config
from ftscale.models.save import load_saved
from ftscale.models.sizes import size_problems, told_as_too_large

LLAMA = "weights/stories260K"
ABSURD = {
    "vocab_size": 10**12,
    "hidden_size": 10**12,
    "num_hidden_layers": 100_000,
    "num_attention_heads": 10**9,
    "intermediate_size": 10**12,
    "num_labels": 10**12,  # of which transformers makes a dict as long
    "max_position_embeddings": 10**30,
}


def with_config(shared: Path, folder: Path, **changes) -> Path:
    shutil.copytree(shared / LLAMA, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", ABSURD)
def test_a_size_of_a_models_config_out_of_all_proportion_is_refused(shared: Path, tmp_path: Path, name: str):
    value = ABSURD[name]
    folder = with_config(shared, tmp_path / "model", **{name: value})
    shown = "over 10\\*\\*30" if value >= 10**30 else value
    with pytest.raises(UserError, match=rf"model\.name = .*config\.json\.{name} = {shown} is more than the \d+"):
        load_model_config(ModelConfig(name=str(folder)), settings={})
    with pytest.raises(UserError, match=rf"model\.overrides\.{name} = {shown} is more than the \d+"):
        load_model_config(ModelConfig(name=str(shared / LLAMA), overrides={name: value}), settings={})


def test_check_and_train_refuse_a_vocabulary_of_a_million_million(shared: Path, tmp_path: Path):
    folder = with_config(shared, tmp_path / "model", vocab_size=10**12)
    tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, model={"name": str(folder), "init": "random"}))
    for command in ("check", "train"):
        said = tiny.command(command, tmp_path / "run.yaml")
        assert said.code == 2
        assert "vocab_size = 1000000000000 is more than the 100000000 that any model has" in said.stderr + said.stdout


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"method": "lora", "r": 10**12}, "r = 1000000000000"),
        ({"method": "lora", "rank_pattern": {"q_proj": 10**9}}, "rank_pattern = 1000000000"),
        ({"method": "lora", "layer_replication": [[0, 1]] * 100_000}, "layer_replication = 100000"),
        ({"method": "lora", "layer_replication": [[0, 10**9]]}, "layer_replication = 1000000000"),
        ({"method": "adalora", "init_r": 10**9}, "init_r = 1000000000"),
        ({"method": "prefix_tuning", "num_virtual_tokens": 10**9}, "num_virtual_tokens = 1000000000"),
        ({"method": "p_tuning", "num_virtual_tokens": 4, "encoder_num_layers": 10**6}, "encoder_num_layers = 1000000"),
    ],
)
def test_a_size_of_an_adapter_out_of_all_proportion_is_refused(settings: dict, name: str):
    with pytest.raises(UserError, match=rf"adapter\.{name} is more than the \d+ "):
        build_peft_config(AdapterConfig(**settings), task_type="CAUSAL_LM", num_steps=10)


@pytest.mark.parametrize("change", [{"r": 10**12}, {"layer_replication": [[0, 1]] * 100_000}, {"lora_alpha": 3}])
def test_a_saved_adapter_of_such_a_size_is_refused(shared: Path, tmp_path: Path, change: dict):
    base = AutoModelForCausalLM.from_pretrained(shared / LLAMA)
    get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    AutoConfig.from_pretrained(shared / LLAMA).save_pretrained(tmp_path / "base_config")
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text()) | {"base_model_name_or_path": str(shared / LLAMA)}
    path.write_text(json.dumps(written | change))
    if "lora_alpha" in change:
        assert load_saved(tmp_path, auto_class="AutoModelForCausalLM").peft_config["default"].lora_alpha == 3
        return
    with pytest.raises(UserError, match=rf"adapter_config\.json\.{next(iter(change))} = \d+ is more than the"):
        load_saved(tmp_path, auto_class="AutoModelForCausalLM")


def test_a_model_that_memory_cannot_hold_is_told_in_a_sentence(shared: Path):
    config = ModelConfig(name=str(shared / LLAMA), init="random", overrides={"vocab_size": 10**8, "hidden_size": 2**20})
    with pytest.raises(UserError, match=r"model\.name = .* is larger than the memory here \(.*allocate memory"):
        load_model(config, auto_class="AutoModelForCausalLM", settings={}, dtype=None, seed=0)
    with pytest.raises(RuntimeError, match="something else"), told_as_too_large("model"):
        raise RuntimeError("something else")


def test_an_adapter_that_memory_cannot_hold_is_told_in_a_sentence(shared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ftscale.models.sizes.MOST_RANK", 10**12)
    model = AutoModelForCausalLM.from_pretrained(shared / LLAMA)
    with pytest.raises(UserError, match=r"adapter = \{method: lora, ...\} is larger than the memory here"):
        apply_adapter(model, AdapterConfig(method="lora", r=10**12), task_type="CAUSAL_LM")


def test_check_counts_the_parameters(shared: Path, tmp_path: Path):
    overrides = {"vocab_size": 10**8, "hidden_size": 2**20}
    tiny.write_run(
        tmp_path,
        tiny.settings(shared, tmp_path, model={"name": str(shared / LLAMA), "init": "random", "overrides": overrides}),
    )
    said = tiny.command("check", tmp_path / "run.yaml")
    assert said.code == 2
    assert "parameters by its config, more than any model" in said.stderr + said.stdout
    assert check_of_model.MOST_PARAMETERS == 10**13


def test_real_configs_are_in_bounds():
    real = {  # of Llama 3.1 405B, DeepSeek-V3, Llama 4 Scout and mT5, as published
        "llama": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "vocab_size": 128256},
        "deepseek": {"n_routed_experts": 256, "kv_lora_rank": 512, "q_lora_rank": 1536, "num_hidden_layers": 61},
        "scout": {"text_config": {"max_position_embeddings": 10_485_760, "rope_theta": 500000.0}},
        "mt5": {"vocab_size": 250112, "num_labels": 20_000, "rope_theta": 10**11, "torch_dtype": "float32"},
    }
    assert [size_problems(config, setting=name) for name, config in real.items()] == [[]] * 4
