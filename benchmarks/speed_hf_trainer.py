"""HF Trainer's side of benchmarks/speed.py: the same rows, model and steps, at a setting of the grid.

    python benchmarks/speed_hf_trainer.py RUN.yaml OUT_FOLDER SETTING_AS_JSON

Reads the samples that ftscale prepared. Writes OUT_FOLDER/first_step when the first step is done, and result.json.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]

PLAIN: dict[str, Any] = {
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 0,
}
"""Arguments of a trainer that does nothing but train."""
MODELS = {
    "text_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "causal_lm": "AutoModelForCausalLM",
    "masked_lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image_classification": "AutoModelForImageClassification",
}


class Stopwatch(TrainerCallback):
    """Time and memory of the training itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train_s = 0.0
        self.peak_bytes = 0
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 1:
            (self.folder / "first_step").write_text("done")
        self.train_s = time.perf_counter() - self.start
        self.steps = state.global_step
        self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(run: dict[str, Any], folder: Path, setting: dict[str, Any]) -> None:
    """Train as `run` says, then score the held-out rows."""
    task, training = run["task"]["name"], run["train"]
    rows = Dataset.from_list(read_rows(folder / "train.json"))
    settings = json.loads((folder / "model_settings.json").read_text())
    model = build_model(run, settings, attention=setting.get("attention"))
    collate = build_collator(run, model)
    arguments = TrainingArguments(
        output_dir=str(folder / "output"),
        num_train_epochs=training["epochs"],
        max_steps=training.get("max_steps", -1),
        per_device_train_batch_size=run["batch"]["global_size"] // setting["micro_batches"],
        gradient_accumulation_steps=setting["micro_batches"],
        learning_rate=run["optimizer"]["lr"],
        weight_decay=0.01,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length" if setting.get("grouped_by_length") else "random",
        gradient_checkpointing=False,
        remove_unused_columns=False,
        **PLAIN,
    )
    stopwatch = Stopwatch(folder)
    Trainer(model, arguments, data_collator=collate, train_dataset=rows, callbacks=[stopwatch]).train()
    tokens = None if task == "image_classification" else sum(map(len, rows["input_ids"]))
    write_result(folder, stopwatch, model, collate, tokens=tokens, shifted=task == "causal_lm")


def write_result(
    folder: Path, stopwatch: Stopwatch, model: Any, collate: Collate, *, tokens: int | None, shifted: bool = True
) -> None:
    """Score the held-out rows and write all figures. `tokens`: trained on; None = images are counted instead."""
    result = {
        "train_s": stopwatch.train_s,
        "peak_bytes": stopwatch.peak_bytes,
        "steps": stopwatch.steps,
        "tokens": tokens,
        "held_out_loss": score(model, read_rows(folder / "eval.json"), collate, shifted=shifted),
    }
    (folder / "result.json").write_text(json.dumps(result))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Samples that benchmarks/speed.py wrote, one JSON object a line."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def build_model(run: dict[str, Any], settings: dict[str, Any], *, attention: str | None) -> Any:
    """The model in its fastest form: weights in the run's precision, LoRA in the weights' type."""
    dtype = torch.bfloat16 if run["train"]["precision"] == "bf16" else torch.float32
    options = {} if attention is None else {"attn_implementation": attention}
    if "id2label" in settings:
        settings["id2label"] = {int(number): label for number, label in settings["id2label"].items()}
    model = getattr(transformers, MODELS[run["task"]["name"]]).from_pretrained(
        run["model"], dtype=dtype, ignore_mismatched_sizes=True, **settings, **options
    )
    if "adapter" not in run:
        return model
    from peft import LoraConfig, get_peft_model

    adapter = {name: value for name, value in run["adapter"].items() if name != "method"}
    # in float32, peft's default, each adapted layer converts its input: 8 % slower
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapter), autocast_adapter_dtype=False)


def load_tokenizer(run: dict[str, Any]) -> Any:
    """The model's tokenizer, which pads with its end token where it has no other."""
    tokenizer = AutoTokenizer.from_pretrained(run["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def build_collator(run: dict[str, Any], model: Any) -> Collate:
    """transformers' own collators, and its own image processor."""
    if run["task"]["name"] == "image_classification":
        return image_collator(transformers.AutoImageProcessor.from_pretrained(run["model"], backend="pil"), model.dtype)
    tokenizer = load_tokenizer(run)
    by_task = {
        "text_classification": lambda: transformers.DataCollatorWithPadding(tokenizer),
        "token_classification": lambda: transformers.DataCollatorForTokenClassification(tokenizer),
        "question_answering": lambda: transformers.DataCollatorWithPadding(tokenizer),
        "masked_lm": lambda: _hiding(tokenizer),
        "causal_lm": lambda: transformers.DataCollatorForSeq2Seq(tokenizer),
        "seq2seq": lambda: transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
    }
    collate = by_task[run["task"]["name"]]()
    return _of_known_names(collate)


def _hiding(tokenizer: Any) -> Collate:
    """What run_mlm hides of rows to train on; held-out rows have their labels already."""
    hide, keep = transformers.DataCollatorForLanguageModeling(tokenizer), padded(tokenizer)
    return lambda rows: keep(rows) if "labels" in rows[0] else hide(rows)


def padded(tokenizer: Any) -> Collate:
    """The collator of a causal model's held-out rows."""
    return _of_known_names(transformers.DataCollatorForSeq2Seq(tokenizer))


def _of_known_names(collate: Any) -> Collate:
    names = ("input_ids", "token_type_ids", "labels", "start_positions", "end_positions")
    return lambda rows: collate([{name: row[name] for name in names if name in row} for row in rows])


def image_collator(processor: Any, dtype: torch.dtype) -> Collate:
    """Decodes, then one call of the processor."""
    from PIL import Image

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        images = [Image.open(row["image_path"]).convert("RGB") for row in rows]
        return {
            "pixel_values": processor(images, return_tensors="pt")["pixel_values"].to(dtype),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    return collate


@torch.no_grad()
def score(model: Any, rows: Any, collate: Collate, *, shifted: bool) -> float:
    """Mean loss of a target of the held-out rows. `shifted`: the logits at a position are of the next token."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), 8):
        batch = collate([rows[number] for number in range(start, min(start + 8, len(rows)))])
        outputs = model(**batch)
        if "start_logits" in outputs:
            both = ((outputs.start_logits, batch["start_positions"]), (outputs.end_logits, batch["end_positions"]))
            total += sum(cross_entropy(logits.float(), labels, reduction="sum").item() for logits, labels in both)
            count += 2 * len(batch["input_ids"])
            continue
        logits, labels = outputs.logits.float(), batch["labels"]
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        total += cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    return total / count


if __name__ == "__main__":
    transformers.set_seed(0)
    main(yaml.safe_load(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), json.loads(sys.argv[3]))
