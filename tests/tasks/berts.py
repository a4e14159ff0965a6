"""Tiny BERTs without dropout for the tokenizer of the 260 K Llama, and texts: what runs of toys are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "Tom had a red ball.",
    "The cat was sad because she was not happy and wanted to play in the park.",
    "A bird",
    "Mom said, you can play with your toys, but be careful.",
    "Lily and Ben saw a big tree.",
]


def save_bert(folder: Path, *, hidden: int, seed: int, auto_class: str = "AutoModelForSequenceClassification") -> Path:
    """Random weights, large enough that outputs differ; two classes."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=512,
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    getattr(transformers, auto_class).from_config(config).save_pretrained(folder)
    return folder


def bert_run(shared: Path, work: Path, **changes: Any) -> dict[str, Any]:
    """Settings of four steps of plain SGD over the texts in their order, six a step, two at a time."""
    rows = work / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS * 2))
    return {
        "model": {
            "name": str(save_bert(work / "student", hidden=32, seed=1)),
            "processor": str(shared / "weights/stories260K"),
        },
        "data": {"train": str(rows), "eval": str(rows), "shuffle": False, "cache_dir": str(work / "cache")},
        "batch": {"global_size": 6, "micro_size": 2},
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
        "schedule": {"name": "constant"},
        "train": {"max_steps": 4, "max_grad_norm": 0},
        "evaluation": {"keep_best": False},
        "checkpoint": {"prove": "never", "every": 2, "keep": 9},
        **changes,
    }
