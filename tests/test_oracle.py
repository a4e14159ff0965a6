"""A small Llama agrees with transformers' Trainer, step by step."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import jobs

from ftscale.config import parse_config
from ftscale.run.train import train

STEPS, WARMUP, GLOBAL, LR = 20, 5, 8, 1e-3

Step = dict[str, float]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_losses_norms_and_rates_are_those_of_trainer(shared: Path, tmp_path: Path, accumulation: int):
    theirs = trained_by_trainer(shared, tmp_path / "theirs", accumulation=accumulation)
    ours = trained_by_ftscale(shared, tmp_path / "ours", accumulation=accumulation)
    assert len(ours) == len(theirs) == STEPS
    for name in ("loss", "grad_norm"):
        assert [step[name] for step in ours] == pytest.approx([step[name] for step in theirs], rel=1e-4)
    assert [step["lr"] for step in ours] == pytest.approx([step["learning_rate"] for step in theirs], rel=1e-9)
    assert max(step["lr"] for step in ours) == LR


def trained_by_ftscale(shared: Path, work: Path, *, accumulation: int) -> list[Step]:
    config = {
        "task": {"name": "causal_lm"},
        "run_folder": str(work / "run"),
        "model": {"name": str(shared / "weights/stories260K")},
        "data": {
            "train": {"path": str(captions_file(shared)), "format": "text", "limit": STEPS * GLOBAL},
            "shuffle": False,
            "cache_dir": str(work / "cache"),
        },
        "batch": {"global_size": GLOBAL, "micro_size": GLOBAL // accumulation},
        "optimizer": {"name": "adamw", "lr": LR, "weight_decay": 0.1},
        "schedule": {"name": "linear", "warmup_steps": WARMUP},
        "train": {"max_steps": STEPS, "max_grad_norm": 1.0},
        "checkpoint": {"prove": "never"},
    }
    train(parse_config(config, source="test"))
    return jobs.train_lines(work / "run")


def trained_by_trainer(shared: Path, work: Path, *, accumulation: int) -> list[Step]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    llama = shared / "weights/stories260K"
    tokenizer = AutoTokenizer.from_pretrained(llama)
    with gzip.open(captions_file(shared), "rt") as file:
        texts = [next(file).rstrip("\n") for _ in range(STEPS * GLOBAL)]
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32),
        args=TrainingArguments(
            output_dir=str(work),
            max_steps=STEPS,
            per_device_train_batch_size=GLOBAL // accumulation,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            optim="adamw_torch",
            learning_rate=LR,
            weight_decay=0.1,
            lr_scheduler_type="linear",
            warmup_steps=WARMUP,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
        train_dataset=[{"ids": [*tokenizer(text).input_ids, tokenizer.eos_token_id]} for text in texts],
        data_collator=padded,
    )
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def padded(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Rows padded on the right, without loss on the padding."""
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.tensor([row["ids"] + [0] * (longest - len(row["ids"])) for row in rows])
    mask = torch.tensor([[1] * len(row["ids"]) + [0] * (longest - len(row["ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def captions_file(shared: Path) -> Path:
    return shared / "data/translation/multi30k_de-en/train.en.gz"
