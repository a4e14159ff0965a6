"""The works that benchmarks/speed.py times: for each, a run of ftscale and what the other side needs to do the same."""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftscale.demo.__main__ import encoder_folder

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
FOLDER = ROOT / "runs/speed"

PAIRS = {"rows": "data.paragraphs.qas", "columns": {"anchor": "question", "positive": "context"}}
LORA = {"method": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


NAMES = {
    "input_ids": "input_ids",
    "token_type_ids": "token_type_ids",
    "image_path": "image_path",
    "_label": "labels",
}
"""Columns of prepared rows, and what transformers' collators call them."""


@dataclass(frozen=True)
class Work:
    """What is trained, and what ftscale promises of it beside HF Trainer's best setting."""

    run: dict[str, Any]
    """ftscale's configuration without `run_folder`; one epoch of `steps` whole global batches."""
    steps: int
    tokens_per_s_at_least: float = 1.0
    """Least ratio of tokens/s to HF Trainer's."""
    memory_at_most: float | None = None
    """Greatest ratio of peak memory to HF Trainer's; None = not promised."""


def works() -> dict[str, Work]:
    """All works by name."""
    text, words = SHARED / "data/text_classification/ag_news_7k", SHARED / "data/ner/ncbi_disease"
    captions, qa = SHARED / "data/translation/multi30k_de-en", SHARED / "data/qa"
    news = {"header": False, "columns": {"text": 0, "label": 1}}
    minilm = str(encoder_folder())
    encoder = _run(
        {"name": "text_classification", "max_length": 128},
        minilm,
        train={"path": text / "train.csv", **news, "limit": 800},
        held_out={"path": text / "test.csv", **news, "limit": 200},
        batch={"global_size": 32, "micro_size": 32},
    )
    return {
        "lora": Work(_lora("llama", limit=120), steps=15, tokens_per_s_at_least=1.6, memory_at_most=0.6),
        "lora_small_head": Work(_lora("llama_small_head", limit=48), steps=6),
        "text_classification": Work(encoder, steps=25, tokens_per_s_at_least=1.2),
        "text_classification_fp32": Work(_fp32(encoder), steps=25, tokens_per_s_at_least=1.0),
        "token_classification": Work(
            _run(
                {"name": "token_classification", "max_length": 128},
                minilm,
                train={"path": words / "train.tsv", "format": "conll", "limit": 800},
                held_out={"path": words / "devel.tsv", "format": "conll", "limit": 200},
                batch={"global_size": 32, "micro_size": 32},
                group_by_length=True,
            ),
            steps=25,
        ),
        "seq2seq": Work(
            _run(
                {"name": "seq2seq", "max_length": 128, "generate": None},
                str(FOLDER / "t5"),
                train=_parallel(captions, "train", limit=960),
                held_out=_parallel(captions, "val", limit=200),
                batch={"global_size": 32, "micro_size": 32},
                lr=1e-3,
                group_by_length=True,
            ),
            steps=30,
        ),
        "question_answering": Work(
            _run(
                {"name": "question_answering", "max_length": 192, "stride": 48},
                minilm,
                train={"path": qa / "squad_v1/test-v1.1.json", "rows": "data.paragraphs.qas", "limit": 480},
                held_out={"path": qa / "xquad_en/xquad.en.json", "rows": "data.paragraphs.qas", "limit": 100},
                batch={"global_size": 16, "micro_size": 16},
                lr=3e-4,
                max_steps=25,
            ),
            steps=25,
            tokens_per_s_at_least=1.5,
        ),
        "masked_lm": Work(
            _run(
                {"name": "masked_lm", "max_length": 128},
                minilm,
                train={"path": text / "train.csv", "header": False, "columns": {"text": 0}, "limit": 800},
                held_out={"path": text / "test.csv", "header": False, "columns": {"text": 0}, "limit": 200},
                batch={"global_size": 32, "micro_size": 32},
                lr=3e-4,
            ),
            steps=25,
            tokens_per_s_at_least=1.5,
        ),
        "embedding": Work(
            _run(
                {"name": "embedding", "max_length": 128},
                minilm,
                train={"path": qa / "squad_v1/test-v1.1.json", **PAIRS, "limit": 1280},
                held_out={"path": qa / "xquad_en/xquad.en.json", **PAIRS, "limit": 200},
                batch={"global_size": 128, "micro_size": 16},
            ),
            steps=10,
            tokens_per_s_at_least=1.5,
        ),
        "image_classification": Work(
            _run(
                {"name": "image_classification"},
                str(SHARED / "weights/mobilenet_v1_0.25_224"),
                train={"path": FOLDER / "images_train.csv"},
                held_out={"path": FOLDER / "images_test.csv"},
                batch={"global_size": 32, "micro_size": 32},
                lr=1e-3,
            ),
            steps=25,
        ),
    }


def make_inputs() -> None:
    """Write into FOLDER what does not lie in ../shared: models of random weights, rows, images."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = json.loads((SHARED / "data/sft/llamafactory_demo/alpaca_en_demo.json").read_text())
    for name, part in (("instructions", rows[:120]), ("held_out_instructions", rows[120:160])):
        (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    _write_images("train", each=80)
    _write_images("test", each=20)
    if not (FOLDER / "llama_small_head/config.json").exists():
        _write_models()


def prepare(folder: Path) -> None:
    """Prepare the rows of `folder`/run.yaml, for ftscale in its cache, and beside it as JSON for the other side."""
    from ftscale.config import load_config
    from ftscale.run.prepared_data import prepare_inputs

    inputs = prepare_inputs(load_config(folder / "run.yaml"))
    assert inputs.train is not None
    assert inputs.evaluation is not None
    for name, part in (("train", inputs.train), ("eval", inputs.evaluation)):
        columns = {NAMES[column]: column for column in part.dataset.column_names if column in NAMES}
        rows = ({name: row[column] for name, column in columns.items()} for row in part.dataset)
        if name == "eval" and inputs.config.task.name == "masked_lm":
            rows = _with_masks(inputs.task, part, seed=inputs.config.seed)
        if inputs.config.task.name == "question_answering":
            rows = (_with_span(row) for row in rows)
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tokens.json").write_text(json.dumps(int(inputs.train.costs.sum())))
    (folder / "model_settings.json").write_text(json.dumps(inputs.task.model_settings()))


def _with_span(row: dict[str, Any]) -> dict[str, Any]:
    start, end = row.pop("labels")
    return {**row, "start_positions": start, "end_positions": end}


def _with_masks(task: Any, part: Any, *, seed: int) -> Iterator[dict[str, list[int]]]:
    """Held-out rows with what is hidden of them in evaluation."""
    for number in range(len(part)):
        batch = task.collate([part.sample(number, seed=seed)], layout="padded", train=False)
        yield {"input_ids": batch.inputs["input_ids"][0].tolist(), "labels": batch.labels[0].tolist()}


def _run(
    task: dict[str, Any],
    model: str,
    *,
    train: dict[str, Any],
    held_out: dict[str, Any],
    batch: dict[str, int],
    lr: float = 5e-5,
    group_by_length: bool = False,
    max_steps: int = 0,
) -> dict[str, Any]:
    return {
        "task": task,
        "model": model,
        "data": {
            "train": _as_text(train),
            "eval": _as_text(held_out),
            "cache_dir": str(FOLDER / "prepared"),
            "group_by_length": group_by_length,
        },
        "batch": batch,
        "optimizer": {"lr": lr},
        "train": {"epochs": 1, "precision": "bf16", **({"max_steps": max_steps} if max_steps else {})},
        "evaluation": {"micro_size": 8},
        "checkpoint": {"prove": "never"},
    }


def _lora(model: str, *, limit: int) -> dict[str, Any]:
    """LoRA on instructions, of a model that `make_inputs` writes."""
    run = _run(
        {"name": "causal_lm", "max_length": 1024, "chat_template": "alpaca"},
        str(FOLDER / model),
        train={"path": FOLDER / "instructions.jsonl", "limit": limit},
        held_out={"path": FOLDER / "held_out_instructions.jsonl"},
        batch={"global_size": 8, "micro_size": 8},
        lr=1e-3,
    )
    return {**run, "adapter": LORA}


def _fp32(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "train": {**run["train"], "precision": "fp32"}}


def _as_text(source: dict[str, Any]) -> dict[str, Any]:
    return {**source, "path": str(source["path"])}


def _parallel(folder: Path, name: str, *, limit: int) -> dict[str, Any]:
    return {"path": f"{folder / name}.de.gz,{folder / name}.en.gz", "format": "parallel", "limit": limit}


def _write_images(part: str, *, each: int) -> None:
    """A CSV of `each` images of every class."""
    root = FOLDER / "cifar10"
    if not root.exists():
        with tarfile.open(SHARED / "data/image_classification/cifar10_subset.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    with (FOLDER / f"images_{part}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label"])
        for folder in sorted((root / part).iterdir()):
            writer.writerows([path, folder.name] for path in sorted(folder.iterdir())[:each])


def _write_models() -> None:
    """Models of random weights with T5's vocabulary of 32k: two Llamas and a T5.

    The head of the larger Llama, which is its embedding too, is 9.8 % of its weights, as in a model of some billions.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "weights/tokenizers/t5")
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    llama = {
        "vocab_size": 32_128,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        **special,
    }
    small = LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=8, tie_word_embeddings=False, **llama
    )
    large = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=24, tie_word_embeddings=True, **llama
    )
    t5 = T5Config(
        vocab_size=32_128,
        d_model=256,
        d_kv=64,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=4,
        decoder_start_token_id=0,
        **special,
    )
    for name, model_class, config in (
        ("t5", T5ForConditionalGeneration, t5),
        ("llama", LlamaForCausalLM, small),
        ("llama_small_head", LlamaForCausalLM, large),
    ):
        torch.manual_seed(0)
        model_class(config).to(torch.bfloat16).save_pretrained(FOLDER / name)
        tokenizer.save_pretrained(FOLDER / name)
