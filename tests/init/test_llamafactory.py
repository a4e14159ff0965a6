"""LLaMA-Factory's YAML, with data sets that its dataset_info.json describes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from translating import translated

from ftscale.base.errors import UserError

QLORA = """
### model
model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
quantization_bit: 4
### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
### dataset
dataset: desk, chats
template: llama3
cutoff_len: 1024
max_samples: 500
overwrite_cache: true
val_size: 0.1
### output
output_dir: saves/desk
plot_loss: true
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
eval_strategy: steps
eval_steps: 50
"""
FULL = """
model_name_or_path: Qwen/Qwen2.5-7B
stage: sft
finetuning_type: full
deepspeed: ds_z3_config.json
dataset: desk
template: qwen
neat_packing: true
mask_history: true
output_dir: saves/full
per_device_train_batch_size: 2
learning_rate: 1.0e-5
"""
DESCRIBED = {
    "desk": {"file_name": "desk.json", "columns": {"prompt": "question", "query": "input", "response": "answer"}},
    "chats": {
        "hf_hub_url": "someone/chats",
        "subset": "short",
        "formatting": "sharegpt",
        "columns": {"messages": "turns", "system": "system"},
        "tags": {"role_tag": "role", "content_tag": "content"},
    },
    "pairs": {"file_name": "pairs.json", "ranking": True},
    "talks": {"file_name": "talks.jsonl", "formatting": "sharegpt"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of configurations, with data/dataset_info.json beside them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(DESCRIBED))
    return tmp_path


def test_a_qlora_on_described_data_sets(folder: Path):
    done = translated(folder, QLORA, processes=2)
    config = done.config
    assert (config.task.name, config.task.max_length, config.task.chat_template) == ("causal_lm", 1024, "llama3")
    assert config.task.targets == "assistant"
    assert config.model.quantization == "nf4"
    adapter = config.adapter.model_dump()
    assert adapter == {"method": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    first, second = config.data.train
    assert (first.path, first.limit) == (str(folder / "data/desk.json"), 500)
    assert first.columns == {"instruction": "question", "output": "answer"}
    assert (second.path, second.format, second.name) == ("someone/chats", "hub", "short")
    assert second.columns == {"messages": "turns"}
    assert (config.data.eval_ratio, config.evaluation.every, config.checkpoint.every) == (0.1, 50, 500)
    assert (config.batch.global_size, config.train.epochs, config.train.precision) == (16, 3, "bf16")
    assert config.train.activation_checkpointing  # LLaMA-Factory's default
    assert {line.split(":")[0] for line in done.found.lacks} == {"overwrite_cache", "plot_loss"}
    assert "the columns system of chats are not read" in done.said


def test_all_weights_under_zero_3_on_packed_rows(folder: Path):
    (folder / "ds_z3_config.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    done = translated(folder, FULL, processes=4)
    config = done.config
    assert (config.distributed.strategy, config.adapter.method) == ("zero3", "none")
    assert (config.task.targets, config.task.chat_template, config.task.max_length) == ("last", None, 2048)
    assert (config.batch.global_size, config.batch.micro_tokens) == (8, 4096)
    assert config.schedule.name == "linear"


def test_plain_texts_frozen_layers_and_rows_to_hold_out(folder: Path):
    text = QLORA.replace("stage: sft", "stage: pt").replace("finetuning_type: lora", "finetuning_type: freeze")
    text = text.replace("quantization_bit: 4", "flash_attn: fa2").replace("val_size: 0.1", "val_size: 300")
    done = translated(folder, f"{text}freeze_trainable_layers: 4\n")
    assert done.config.task.join_texts
    assert (done.config.trainable.scope, done.config.trainable.last_blocks) == ("last_blocks", 4)
    assert done.config.data.train[0].columns == {"text": "question"}
    assert "val_size: 300 rows; ftscale holds out a share" in done.said
    assert "lora_rank: finetuning_type: freeze has no LoRA adapter" in done.said


def test_a_data_set_that_is_not_described_is_a_guess_and_said_so(folder: Path):
    done = translated(folder, FULL.replace("dataset: desk", "dataset: other"))
    assert done.config.data.train[0].path == str(folder / "data/other.json")
    assert "the file of the data set other is a guess" in done.said
    assert "distributed.strategy = zero3 goes by the name" in done.said
    columns = translated(folder, FULL.replace("dataset: desk", "dataset: talks")).config.data.train[0].columns
    assert columns == {}  # conversations, as ours


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("stage: sft", "stage: dpo", r"is for preference training \(DPO\) \(stage: dpo\)"),
        ("stage: sft", "stage: ppo", r"is for PPO \(stage: ppo\)"),
        ("stage: sft", "stage: rm", r"is for reward modelling \(stage: rm\)"),
        ("stage: sft", "stage: kto", r"is for KTO \(stage: kto\)"),
        ("dataset: desk, chats", "dataset: pairs", r"is for preference training \(ranking of pairs\)"),
        ("finetuning_type: lora", "finetuning_type: magic", "finetuning_type = 'magic' of theirs.yaml is not known"),
    ],
)
def test_other_methods_are_refused_by_name(folder: Path, old: str, new: str, said: str):
    with pytest.raises(UserError, match=said):
        translated(folder, QLORA.replace(old, new))
