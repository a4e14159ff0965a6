"""TRL's side of benchmarks/speed.py: SFTTrainer on the same tokens, model and steps, at a setting of the grid.

    python benchmarks/speed_trl.py RUN.yaml OUT_FOLDER SETTING_AS_JSON

Packed, a row holds about as many tokens as a micro-batch would, so that the number of steps is the same.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from speed_hf_trainer import PLAIN, Stopwatch, build_model, load_tokenizer, padded, read_rows, write_result
from trl import SFTConfig, SFTTrainer


def main(run: dict[str, Any], folder: Path, setting: dict[str, Any]) -> None:
    """Train as `run` says, then score the held-out rows."""
    rows, size, parts = read_rows(folder / "train.json"), run["batch"]["global_size"], setting["micro_batches"]
    steps = len(rows) // size
    tokens = sum(len(row["input_ids"]) for row in rows)
    tokenizer = load_tokenizer(run)
    arguments = SFTConfig(
        output_dir=str(folder / "output"),
        max_steps=steps,
        per_device_train_batch_size=1 if setting["packing"] else size // parts,
        gradient_accumulation_steps=parts,
        packing=setting["packing"],
        max_length=math.ceil(tokens / steps / parts) if setting["packing"] else run["task"]["max_length"],
        gradient_checkpointing=setting["activation_checkpointing"],
        learning_rate=run["optimizer"]["lr"],
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length" if setting["grouped_by_length"] else "random",
        bf16=False,  # the weights are in it: autocast would convert them at each use
        **PLAIN,
    )
    stopwatch = Stopwatch(folder)
    trainer = SFTTrainer(
        build_model(run, {}, attention=setting["attention"]),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[stopwatch],
    )
    seen = count_tokens(trainer)
    trainer.train()
    write_result(folder, stopwatch, trainer.model, padded(tokenizer), tokens=seen[0] if setting["packing"] else tokens)


def count_tokens(trainer: Any) -> list[int]:
    """Count the tokens of the batches that are made from now on: the one item of the list."""
    collate: Callable[[Any], dict[str, Any]] = trainer.data_collator
    seen = [0]

    def counted(rows: Any) -> dict[str, Any]:
        batch = collate(rows)
        mask = batch.get("attention_mask")
        seen[0] += int(batch["input_ids"].numel() if mask is None else mask.sum())
        return batch

    trainer.data_collator = counted
    return seen


if __name__ == "__main__":
    main(yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), json.loads(sys.argv[3]))
