"""LLaMA-Factory's side of benchmarks/speed.py: the same rows, model and steps, at a setting of the grid.

    python benchmarks/speed_llamafactory.py RUN.yaml OUT_FOLDER SETTING_AS_JSON

Packed, a row holds about as many tokens as a micro-batch would, so that the number of steps is the same.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import yaml
from llamafactory.train.tuner import run_exp
from speed_hf_trainer import Stopwatch, load_tokenizer, padded, read_rows, write_result


class ScoredAtTheEnd(Stopwatch):
    """Writes the result while the model is at hand: `run_exp` gives none back."""

    def __init__(self, run: dict[str, Any], folder: Path, *, tokens: int) -> None:
        super().__init__(folder)
        self.run = run
        self.tokens = tokens

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        write_result(self.folder, self, others["model"], padded(load_tokenizer(self.run)), tokens=self.tokens)


def main(run: dict[str, Any], folder: Path, setting: dict[str, Any]) -> None:
    """Train as `run` says, then score the held-out rows."""
    rows, size, parts = read_rows(folder / "train.json"), run["batch"]["global_size"], setting["micro_batches"]
    steps, tokens = len(rows) // size, sum(len(row["input_ids"]) for row in rows)
    source = {"file_name": run["data"]["train"]["path"], "formatting": "alpaca"}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": source}))
    stopwatch = ScoredAtTheEnd(run, folder, tokens=tokens)
    adapter = run["adapter"]
    arguments = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": run["model"],
        "finetuning_type": "lora",
        "lora_rank": adapter["r"],
        "lora_alpha": adapter["lora_alpha"],
        "lora_target": "all",
        "dataset_dir": str(folder),
        "dataset": "rows",
        "max_samples": run["data"]["train"]["limit"],
        "template": run["task"]["chat_template"],
        "cutoff_len": math.ceil(tokens / steps / parts) if setting["packing"] else run["task"]["max_length"],
        "packing": setting["packing"],
        "neat_packing": setting["packing"],
        "overwrite_cache": True,
        "per_device_train_batch_size": 1 if setting["packing"] else size // parts,
        "gradient_accumulation_steps": parts,
        "disable_gradient_checkpointing": not setting["activation_checkpointing"],
        "flash_attn": "sdpa" if setting["attention"] == "sdpa" else "disabled",
        "pure_bf16": run["train"]["precision"] == "bf16",
        "max_steps": steps,
        "learning_rate": run["optimizer"]["lr"],
        "optim": "adamw_torch_fused",
        "output_dir": str(folder / "output"),
        "overwrite_output_dir": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "seed": 0,
    }
    if setting["grouped_by_length"]:
        arguments["train_sampling_strategy"] = "group_by_length"
    run_exp(arguments, callbacks=[stopwatch])


if __name__ == "__main__":
    main(yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), json.loads(sys.argv[3]))
