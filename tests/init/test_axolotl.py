"""Axolotl's YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
from translating import translated

from ftscale.base.errors import UserError

QLORA = """
base_model: meta-llama/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: true
strict: false

datasets:
  - path: someone/alpaca_rows
    type: alpaca
  - path: rows/own.jsonl
    type: {field_instruction: ask, field_output: reply, format: "[INST] {instruction}"}
dataset_prepared_path: prepared
val_set_size: 0.05
output_dir: ./outputs/qlora

adapter: qlora
lora_model_dir:
sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true

wandb_project: alpaca
wandb_mode: offline
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: paged_adamw_32bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
FULL = """
base_model: Qwen/Qwen2.5-3B
chat_template: chatml
datasets:
  - path: rows/chats.jsonl
    type: chat_template
    field_messages: turns
test_datasets:
  - path: rows/held_out.jsonl
    type: chat_template
    field_messages: turns
    split: train
output_dir: out/full
sequence_len: 2048
train_on_inputs: yes
micro_batch_size: 1
batch_size: 8
learning_rate: 0.00001
max_steps: 300
cosine_min_lr_ratio: 0.1
eval_steps: 0.1
early_stopping_patience: 3
load_best_model_at_end: true
fp16: true
deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_all.json
"""


def test_a_qlora_on_packed_instructions(tmp_path: Path):
    done = translated(tmp_path, QLORA, processes=2)
    config = done.config
    assert (config.task.max_length, config.task.chat_template, config.task.targets) == (4096, "alpaca", "assistant")
    assert (config.model.quantization, config.model.attention) == ("nf4", "auto")
    adapter = config.adapter.model_dump()
    assert adapter.pop("target_modules") == "all-linear"
    assert adapter == {"method": "lora", "r": 32, "lora_alpha": 16, "lora_dropout": 0.05}
    first, second = config.data.train
    assert (first.path, first.format, first.columns) == ("someone/alpaca_rows", "hub", {})
    assert (second.path, second.columns) == ("rows/own.jsonl", {"instruction": "ask", "output": "reply"})
    assert (config.data.eval_ratio, config.data.cache_dir) == (0.05, "prepared")
    assert (config.batch.global_size, config.batch.micro_tokens) == (16, 8192)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("paged_adamw", 2e-4, 0.0)
    assert (config.schedule.name, config.schedule.warmup_steps, config.schedule.warmup_ratio) == ("cosine", 10, 0)
    assert (config.train.epochs, config.train.precision, config.report.to) == (4, "bf16", ("wandb",))
    assert (config.report.project, config.report.options) == ("alpaca", {"wandb": {"mode": "offline"}})
    assert (config.evaluation.every, config.evaluation.keep_best) == (0, False)
    assert (config.checkpoint.every, config.checkpoint.keep) == (0, 4)
    assert {line.split(":")[0] for line in done.found.lacks} == {"pad_to_sequence_len", "special_tokens"}
    assert "the prompt format of rows/own.jsonl is not taken over" in done.said
    assert "evaluation.every = 0 is once an epoch, where evals_per_epoch = 4 is asked for" in done.said


def test_all_weights_on_chats_with_axolotl_s_own_defaults(tmp_path: Path):
    done = translated(tmp_path, FULL, processes=4)
    config = done.config
    assert (config.task.targets, config.task.chat_template) == ("all", "chatml")
    assert [source.columns for source in (*config.data.train, *config.data.eval)] == [{"messages": "turns"}] * 2
    assert (config.batch.global_size, config.batch.micro_size) == (32, 1)
    assert (config.schedule.name, config.schedule.options) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})
    assert config.schedule.warmup_ratio == 0.03
    assert (config.train.max_steps, config.train.precision) == (300, "fp16")
    evaluation = config.evaluation
    assert (evaluation.every, evaluation.before, evaluation.patience, evaluation.keep_best) == (30, True, 3, True)
    assert config.distributed.strategy == "zero3_offload"
    assert "goes by the name of deepspeed_configs/zero3_bf16_cpuoffload_all.json" in done.said


def test_plain_texts_are_laid_end_to_end(tmp_path: Path):
    text = QLORA.replace("type: alpaca", "type: completion\n    field: body").split("  - path: rows/own.jsonl")
    done = translated(tmp_path, text[0] + text[1].split("\n", 2)[2])
    assert done.config.task.join_texts
    assert done.config.data.train[0].columns == {"text": "body"}
    assert (done.config.batch.micro_size, done.config.batch.micro_tokens) == (2, 0)  # a packed row is a sample


def test_a_stream_of_texts_and_a_share_of_gpus(tmp_path: Path):
    text = FULL.split("datasets:")[0] + "pretraining_dataset: {path: someone/web, name: en, text_column: body}\n"
    text += FULL[FULL.index("output_dir") :].replace("deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_all.json", "")
    config = translated(tmp_path, f"{text}fsdp: [full_shard, auto_wrap]\n").config
    assert (config.data.streaming, config.task.join_texts, config.distributed.strategy) == (True, True, "zero3")
    assert (config.data.train[0].name, config.data.train[0].columns) == ("en", {"text": "body"})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rl: dpo", r"is for preference or reinforcement training \(rl: dpo\), which ftscale does not train"),
        ("reward_model: true", "is for reward modelling"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path: Path, line: str, said: str):
    with pytest.raises(UserError, match=said):
        translated(tmp_path, f"{QLORA}{line}\n")


def test_what_axolotl_itself_refuses_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"learning_rate is missing in theirs\.yaml"):
        translated(tmp_path, QLORA.replace("learning_rate: 2e-4", ""))
    with pytest.raises(UserError, match=r"test_datasets of theirs\.yaml must be a list of sections"):
        translated(tmp_path, f"{QLORA}test_datasets: [rows]\n")
    with pytest.raises(UserError, match=r"base_model is missing in theirs\.yaml"):
        translated(tmp_path, QLORA.replace("base_model: meta-llama/Llama-3.2-1B", ""))
