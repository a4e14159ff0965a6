"""HF Trainer's side of benchmarks/one_number.py: the same rows, models and cuts, one rank of it.

    torchrun --nproc_per_node 2 benchmarks/one_number_hf_trainer.py --worker JOBS.json

Beside the run folders lie the samples that ftscale prepared. Writes metrics.jsonl and model/ of each run, as ftscale
does.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from speed_hf_trainer import build_collator, build_model, read_rows
from transformers import Trainer, TrainingArguments, set_seed

Config = dict[str, Any]


def build(config: Config, folder: Path) -> Trainer:
    """A trainer of a run that is to write into `folder`."""
    rows = Dataset.from_list(read_rows(folder.with_name("train.json")))
    settings = json.loads(folder.with_name("model_settings.json").read_text())
    run = {**config, "model": config["model"]["name"]}
    model = build_model(run, {**settings, **config["model"]["overrides"]}, attention=None)
    samples = config["batch"]["global_size"] // int(os.environ["WORLD_SIZE"])
    micro_size = min(config["batch"]["micro_size"], samples)
    arguments = TrainingArguments(
        per_device_train_batch_size=micro_size,
        gradient_accumulation_steps=samples // micro_size,
        remove_unused_columns=False,
        **common(config, folder),
    )
    return Trainer(model, arguments, data_collator=build_collator(run, model), train_dataset=rows)


def common(config: Config, folder: Path) -> dict[str, Any]:
    """What the arguments of a run have in common, however its batches are made."""
    return {
        "output_dir": str(folder / "output"),
        "max_steps": config["train"]["max_steps"],
        "learning_rate": config["optimizer"]["lr"],
        "adam_epsilon": config["optimizer"]["eps"],
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "steps" if config["checkpoint"]["every"] else "no",
        "save_steps": config["checkpoint"]["every"] or 1,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "ddp_backend": "gloo",
        "seed": 0,
    }


def do_jobs(build: Callable[[Config, Path], Trainer], *, description: str | None) -> None:
    """Do the jobs of the file that the command line names: each run, and once more from its checkpoint where asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=Path, required=True)
    file = parser.parse_args().worker
    torch.set_num_threads(1)
    for job in json.loads(file.read_text()):
        config = job["config"]
        whole = Path(config["run_folder"])
        train(build, config, whole)
        if job["resumes"]:
            checkpoint = whole / f"output/checkpoint-{config['checkpoint']['every']}"
            train(build, config, whole.with_name(whole.name + "-resumed"), checkpoint=str(checkpoint))


def train(
    build: Callable[[Config, Path], Trainer], config: Config, folder: Path, *, checkpoint: str | None = None
) -> None:
    """Do a run, from its beginning or from a checkpoint."""
    set_seed(0)
    trainer = build(config, folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder / "model"))
    if trainer.is_world_process_zero():
        steps = [
            {"kind": "train", "step": line["step"], "loss": line["loss"], "grad_norm": line["grad_norm"]}
            for line in trainer.state.log_history
            if "loss" in line
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


if __name__ == "__main__":
    do_jobs(build, description=__doc__)
