"""TRL's YAML for supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from translating import translated

from ftscale.base.errors import UserError

LORA = """
model_name_or_path: Qwen/Qwen2.5-1.5B-Instruct
attn_implementation: flash_attention_2
dtype: bfloat16
use_peft: true
lora_r: 32
lora_target_modules: all-linear
dataset_name: someone/chats
dataset_config: short
dataset_num_proc: 4
max_length: 1536
packing: true
assistant_only_loss: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 2.0e-4
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs: {min_lr_rate: 0.1}
num_train_epochs: 1
eval_strategy: steps
eval_steps: 100
output_dir: runs/chats
"""
FULL = """
model_name_or_path: HuggingFaceTB/SmolLM2-135M
dataset_name: texts/train.jsonl
dataset_text_field: body
max_seq_length: 512
per_device_train_batch_size: 4
max_steps: 1000
fp16: true
gradient_checkpointing: false
output_dir: runs/texts
"""


def test_a_lora_on_packed_chats(tmp_path: Path):
    done = translated(tmp_path, LORA, processes=8)
    config = done.config
    assert (config.task.name, config.task.max_length, config.task.targets) == ("causal_lm", 1536, "assistant")
    assert config.model.attention == "auto"  # whose flat rows take torch's flash kernel
    adapter = config.adapter.model_dump()
    assert adapter == {
        "method": "lora",
        "r": 32,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
    }
    [train], [held] = config.data.train, config.data.eval
    assert (train.path, train.format, train.name, train.split) == ("someone/chats", "hub", "short", "train")
    assert held.split == "test"
    assert (config.batch.global_size, config.batch.micro_tokens, config.batch.micro_size) == (128, 2 * 1536, 0)
    assert (config.schedule.name, config.schedule.options) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})
    assert (config.train.precision, config.train.activation_checkpointing) == ("bf16", True)
    assert (config.evaluation.every, config.evaluation.keep_best, config.data.prepare_workers) == (100, False, 4)
    assert "counts samples, where TRL counted packed rows of up to 1536 tokens" in done.said


def test_all_weights_on_texts_with_trl_s_own_defaults(tmp_path: Path):
    done = translated(tmp_path, FULL)
    config = done.config
    assert (config.optimizer.lr, config.task.targets, config.task.max_length) == (2e-5, "all", 512)
    assert (config.train.precision, config.train.max_steps) == ("fp16", 1000)
    assert not config.train.activation_checkpointing
    assert config.adapter.method == "none"
    assert (config.data.train[0].format, config.data.train[0].columns) == ("auto", {"text": "body"})
    assert "of rows with prompt and completion it learns the completion alone" in done.said


def test_a_quantised_base_needs_the_adapter_that_the_file_asks_for(tmp_path: Path):
    done = translated(tmp_path, f"{FULL}load_in_4bit: true\nuse_peft: true\n")
    assert (done.config.model.quantization, done.config.adapter.method) == ("nf4", "lora")
    assert "target_modules" not in done.config.adapter.model_dump()  # peft's own for the model
    done = translated(tmp_path, f"{FULL}load_in_8bit: true\nlora_r: 4\n")
    assert done.config.model.quantization == "int8"
    assert "model.quantization needs an adapter" in done.said
    assert "lora_r: TRL reads it with use_peft: true alone" in done.said
    with pytest.raises(UserError, match="load_in_4bit and load_in_8bit of theirs.yaml cannot both be true"):
        translated(tmp_path, f"{FULL}load_in_4bit: true\nload_in_8bit: true\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("beta: 0.1", r"is for DPO \(beta\), which ftscale does not train"),
        ("num_generations: 8", r"is for GRPO \(num_generations\)"),
        ("desirable_weight: 1.0", r"is for KTO \(desirable_weight\)"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path: Path, line: str, said: str):
    with pytest.raises(UserError, match=said):
        translated(tmp_path, f"{FULL}{line}\n")
