"""Whatever a configuration of another tool or a file of rows holds, it is a run.yaml or refused in sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzz.anything import altered, budget, damaged, json_values, refused
from hypothesis import given
from hypothesis import strategies as st

from ftscale.config.load import load_config
from ftscale.config.yaml_text import read_yaml
from ftscale.init.guide import guide_to
from ftscale.init.translate import TOOLS, translate_file

FILES: dict[str, dict[str, Any]] = {
    "axolotl": {
        "base_model": "a",
        "datasets": [{"path": "a", "type": "chat_template", "message_property_mappings": {"role": "from"}}],
        "test_datasets": [
            {"path": "a.jsonl", "type": {"field_instruction": "ask", "format": "x"}, "data_files": ["b"]}
        ],
        "adapter": "qlora",
        "lora_target_modules": ["q"],
        "optimizer": "adamw_bnb_8bit",
        "learning_rate": "2e-4",
        "batch_size": 8,
        "micro_batch_size": 2,
        "sample_packing": True,
        "evals_per_epoch": 4,
        "val_set_size": 0.1,
        "lr_scheduler": "rex",
        "cosine_min_lr_ratio": 0.1,
        "fsdp": ["full_shard"],
        "wandb_project": "a",
        "early_stopping_patience": 2,
    },
    "llamafactory": {
        "model_name_or_path": "a",
        "stage": "sft",
        "finetuning_type": "freeze",
        "freeze_trainable_layers": 2,
        "dataset": "a,b",
        "eval_dataset": ["c"],
        "template": "llama3",
        "quantization_bit": 4,
        "cutoff_len": 100,
        "neat_packing": True,
        "max_samples": 10,
        "deepspeed": {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
        "warmup_steps": 0.1,
    },
    "trl": {
        "dataset_name": "a",
        "dataset_train_split": "train",
        "use_peft": True,
        "lora_r": 4,
        "packing": True,
        "max_length": 128,
        "datasets": [{"path": "a", "weight": 2}],
        "attn_implementation": "sdpa",
        "eval_strategy": "steps",
        "eval_steps": 5,
        "lr_scheduler_kwargs": {"a": 1},
        "report_to": ["wandb"],
    },
    "transformers": {
        "task_name": "mrpc",
        "train_file": "a.csv",
        "validation_file": "b.csv",
        "text_column_names": "a,b",
        "metric_for_best_model": "f1",
        "greater_is_better": True,
        "load_best_model_at_end": True,
        "adam_beta1": 0.8,
        "save_steps": 0.5,
        "max_steps": 10,
        "save_total_limit": 2,
    },
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_of_a_tool_with_anything_in_it_is_translated_or_refused(tmp_path: Path, tool: str):
    theirs = tmp_path / "theirs.json"

    @budget(12)
    @given(altered(FILES[tool]) | altered(FILES[tool]).flatmap(altered) | json_values, st.booleans())
    def translate(values: Any, named: bool) -> None:
        theirs.write_text(json.dumps(values))
        with refused():
            text = translate_file(theirs, tool=tool if named else None, task=None).text
            (tmp_path / "run.yaml").write_text(text, errors="surrogateescape")
            load_config(tmp_path / "run.yaml")
            assert isinstance(read_yaml(text, source="run.yaml"), dict)

    translate()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b"text,label\nit rained,a\nit snowed,b\nit rained,a\nit snowed,b\n"),
        ("rows.tsv", b"EU\tB-ORG\nrejects\tO\n\nIt\tO\nsaid\tO\n"),
        ("rows.jsonl", b'{"question": "who are you", "answer": "nobody at all"}\n{"words": ["a"], "tags": ["O"]}\n'),
        ("rows.json", b'[{"messages": [{"role": "user", "content": "hello"}]}, {"messages": null, "chosen": 1}]'),
        ("rows.txt", b"once upon a time\nthere was a king\n"),
        ("rows.txt", b"__label__a it rained\n__label__b __label__a it snowed\n"),
    ],
)
def test_a_file_of_rows_with_any_damage_is_told_or_refused(tmp_path: Path, name: str, content: bytes):
    @budget(12)
    @given(damaged(content) | st.just(content))
    def guide(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        with refused():
            (tmp_path / "run.yaml").write_text(guide_to(tmp_path / name).text)
            load_config(tmp_path / "run.yaml")

    guide()
