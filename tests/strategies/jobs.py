"""Small real runs that every strategy must do alike, and what can be read of a run when it is over."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import launching
import torch

WORKER = Path(__file__).with_name("worker.py")
STEPS, HALF = 6, 3
MAX_GRAD_NORM = 0.5
# an epsilon that is not small against the gradients: Adam's first steps then magnify no rounding, and clipping shows
ADAM = {"name": "adamw", "lr": 0.01, "eps": 1e-3}

# the text alone, as the Llama knows it
TEMPLATE = """{% for message in messages %}{{ message.content }}{{ eos_token if message.role == "assistant" else " " }}\
{% endfor %}"""
STORIES = {  # in the words of the data that the Llama comes from
    "Once upon a time, there was a little girl named Lily. She": "loved to play outside with her toys.",
    "One day, a boy named Tim went to the park. He saw": "a big dog and wanted to play with it.",
    "Tom had a red ball. He liked to": "play with the ball in the park with his mom.",
    "The cat was sad because": "she was not happy and wanted to play.",
    "Lily and Ben were playing in the garden. They": "saw a big tree and wanted to climb it.",
    "Mom said,": "you can play with your toys, but be careful.",
    "The little bird wanted to fly, but": "it was too small and he was scared.",
}


@dataclass
class Jobs:
    """Runs by name, made by one launch for each number of processes."""

    work: Path
    folders: dict[str, Path] = field(default_factory=dict)
    listed: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def add(
        self, name: str, config: dict[str, Any], *, strategy: str, processes: int = 2, resume_from: int = 0
    ) -> None:
        """List a run, unless one of that name is listed."""
        if name in self.folders:
            return
        self.folders[name] = self.work / name
        distributed = {"strategy": strategy}
        if strategy == "zero3_nvme":
            distributed["offload_dir"] = str(self.work / "nvme")
        config = {**config, "run_folder": str(self.folders[name]), "distributed": distributed}
        self.listed.setdefault(processes, []).append({"config": config, "resume_from": resume_from})

    def run(self) -> None:
        for processes, jobs in self.listed.items():
            launching.launch(WORKER, jobs, processes=processes, work=self.work)


# ---------------------------------------------------------------- configurations


def captions(shared: Path, work: Path, **sections: Any) -> dict[str, Any]:
    """All weights of a real Llama on English captions: flat rows, several micro-batches a step, active clipping."""
    text = shared / "data/translation/multi30k_de-en"
    config = {
        "task": {"name": "causal_lm"},
        "model": {"name": str(shared / "weights/stories260K")},
        "data": {
            "cache_dir": str(work / "cache"),
            "train": {"path": str(text / "train.en.gz"), "format": "text", "limit": 60},
            "eval": {"path": str(text / "val.en.gz"), "format": "text", "limit": 21},
        },
        "batch": {"global_size": 8, "micro_size": 2},
        "optimizer": ADAM,
        "schedule": {"name": "linear", "warmup_steps": 2},
        "train": {"max_steps": STEPS, "max_grad_norm": MAX_GRAD_NORM},
        "evaluation": {"every": HALF},
        "checkpoint": {"every": HALF, "keep": 9, "prove": "never"},
    }
    return config | sections


def reviews(shared: Path, work: Path, **sections: Any) -> dict[str, Any]:
    """A small BERT from random weights, without dropout, with the real vocabulary, on film reviews: padded rows."""
    files = shared / "data/text_classification/sst2"
    columns = {"header": False, "columns": {"text": 0, "label": 1}}
    config = captions(shared, work)
    config["data"] = {
        "cache_dir": str(work / "cache"),
        "train": {"path": str(files / "train.tsv"), "limit": 60, **columns},
        "eval": {"path": str(files / "dev.tsv"), "limit": 31, **columns},
    }
    config["task"] = {"name": "text_classification", "max_length": 64}
    config["model"] = {"name": str(tiny_bert(shared, work)), "init": "random"}
    return config | sections


def regression(
    shared: Path, work: Path, *, labels: dict[int, float], num_rows: int = 40, **sections: Any
) -> dict[str, Any]:
    """The small BERT learns numbers, 4 rows a step in the file's order; `labels`: of some rows, counted from 1."""
    rows = [
        {"text": f"row {number} of a table", "label": labels.get(number + 1, number % 7)} for number in range(num_rows)
    ]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = reviews(shared, work)
    config |= {
        "task": {"name": "text_classification", "problem": "regression"},
        "data": {"cache_dir": str(work / "cache"), "train": str(work / "rows.jsonl"), "shuffle": False},
        "batch": {"global_size": 4, "micro_size": 2},
        "train": {"max_steps": num_rows // 5},
        "evaluation": {},
        "checkpoint": {"every": 2, "keep": 9, "prove": "never"},
    }
    return config | sections


def tiny_bert(shared: Path, work: Path) -> Path:
    """A BERT's configuration with a real tokenizer beside it."""
    model = work / "tiny-bert"
    if not model.exists():
        from transformers import BertConfig

        shutil.copytree(shared / "weights/tokenizers/bert-base-uncased", model)
        BertConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ).save_pretrained(model)
    return model


def digits(shared: Path, work: Path, **sections: Any) -> dict[str, Any]:
    """A real MobileNet, which has batch norm, on handwritten digits."""
    images = shared / "data/image_classification/mnist_t10k/t10k-images-idx3-ubyte.gz"
    config = captions(shared, work)
    config["data"] = {
        "cache_dir": str(work / "cache"),
        "train": {"path": str(images), "format": "idx", "limit": 200},
        "eval_ratio": 0.1,
        "stratify": "label",
    }
    config["task"] = {"name": "image_classification", "image_size": 64}
    mobilenet = shared / "weights/mobilenet_v1_0.25_224"
    config["model"] = {"name": str(mobilenet), "overrides": {"classifier_dropout_prob": 0.0}}
    config["optimizer"] = {"name": "adamw", "lr": 1e-3, "eps": 1e-3}
    config["batch"] = {"global_size": 8, "micro_size": 2}
    return config | sections


def answers(shared: Path, work: Path, **sections: Any) -> dict[str, Any]:
    """The Llama on short stories, which it ends in evaluation; every other evaluated chat ends with a question.

    In batches of one sample some ranks then have nothing to write while others write.
    """
    chats = [
        [{"role": "user", "content": opening}, {"role": "assistant", "content": ending}]
        for opening, ending in STORIES.items()
    ]
    write_chats(work / "answers.jsonl", chats * 4)
    more = [{"role": "user", "content": "Why?"}]
    questions = [chat + more if place % 2 else chat for place, chat in enumerate(chats)]
    write_chats(work / "questions.jsonl", questions)
    config = captions(shared, work)
    config["data"] = {
        "cache_dir": str(work / "cache"),
        "train": str(work / "answers.jsonl"),
        "eval": str(work / "questions.jsonl"),
    }
    config["task"] = {
        "name": "causal_lm",
        "chat_template": TEMPLATE,
        "max_length": 256,
        "generate": {"max_new_tokens": 8},
    }
    config["train"] = {"max_steps": 2}
    config["optimizer"] = {"name": "adamw", "lr": 1e-4}
    return config | sections


def write_chats(path: Path, chats: list[list[dict[str, str]]]) -> None:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))


def lora(dtype: str = "fp32", **options: Any) -> dict[str, Any]:
    """Sections of an adapter on the Llama."""
    return {
        "adapter": {"method": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, **options},
        "train": {"max_steps": 4, "max_grad_norm": MAX_GRAD_NORM, "precision": dtype},
        "evaluation": {"every": 4},
        "checkpoint": {"every": 2, "keep": 9, "prove": "final"},
    }


# ---------------------------------------------------------------- results


def train_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that tell of optimizer steps."""
    return [line for line in lines(folder) if line["kind"] == "train"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in train_lines(folder)]


def grad_norms(folder: Path) -> list[float]:
    return [line["grad_norm"] for line in train_lines(folder)]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def seen(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "seen.json").read_text())


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors(item)] if isinstance(value, (list, tuple)) else []
