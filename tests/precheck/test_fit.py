"""Settings, processor and model go together: what is longer or larger than the model is told before a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from transformers import AutoTokenizer

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.precheck import check_config
from ftscale.run.prepared_data import prepare_inputs

WORDS = "once upon a time there was a little cat " * 90


def text_run(work: Path, model: Path, *, task: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A run on three rows, of which one is long; `model`: a folder with a config and a tokenizer."""
    rows = [{"text": text, "label": label} for text, label in ((WORDS, "a"), ("a cat", "b"), ("a dog", "a"))]
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(work / "rows.jsonl"), "cache_dir": str(work / "cache")}
    base = {"task": task, "model": {"name": str(model), "init": "random"}, "data": data, "run_folder": str(work / "r")}
    return base | {"train": {"max_steps": 2}, "batch": {"global_size": 3}, "checkpoint": {"prove": "never"}} | sections


def model_folder(work: Path, shared: Path, kind: str, *, tokenizer: str, **fields: Any) -> Path:
    """A config beside a tokenizer that names no length of its own."""
    folder = work / kind
    name = getattr(transformers, f"{kind}Config")(**fields)
    name.save_pretrained(folder)
    own = AutoTokenizer.from_pretrained(shared / "weights/tokenizers" / tokenizer)
    own.model_max_length = int(1e30)
    own.save_pretrained(folder)
    return folder


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("kind", "task", "tokenizer", "fields"),
    [
        ("Bert", "text_classification", "bert-base-uncased", {"max_position_embeddings": 128, "vocab_size": 30522}),
        ("Roberta", "text_classification", "gpt2", {"max_position_embeddings": 130, "vocab_size": 50257}),
        ("GPT2", "causal_lm", "gpt2", {"n_positions": 128, "n_embd": 32, "n_layer": 1, "n_head": 2}),
    ],
)
def test_a_long_text_is_cut_to_the_positions_of_the_model(
    shared: Path, tmp_path: Path, kind: str, task: str, tokenizer: str, fields: dict[str, int]
):
    folder = model_folder(tmp_path, shared, kind, tokenizer=tokenizer, **({} if kind == "GPT2" else SMALL), **fields)
    file = tiny.write_run(tmp_path, text_run(tmp_path, folder, task={"name": task}))
    outcome = tiny.command("train", file)
    assert outcome.code == 0, outcome.stderr
    assert [step["tokens"] for step in tiny.steps(tmp_path / "r")][0] > 128
    assert AutoTokenizer.from_pretrained(tmp_path / "r/model").model_max_length == 128
    for command in ("check", "train"):
        outcome = tiny.command(command, file, "task.max_length=129", f"run_folder={tmp_path / 'other'}")
        assert outcome.code == 2
        assert "task.max_length = 129 is more than the 128 positions of the model" in outcome.stdout + outcome.stderr


def test_the_shorter_of_tokenizer_and_model_is_the_limit(shared: Path, tmp_path: Path):
    fields = {"max_position_embeddings": 128, "vocab_size": 30522, **SMALL}
    folder = model_folder(tmp_path, shared, "Bert", tokenizer="bert-base-uncased", **fields)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for own, longest in ((64, 64), (512, 128)):
        tokenizer.model_max_length = own
        tokenizer.save_pretrained(folder)
        inputs = prepare_inputs(
            parse_config(text_run(tmp_path, folder, task={"name": "text_classification"}), source="")
        )
        assert max(inputs.train.costs) == longest


def test_a_learned_prompt_takes_positions_from_the_samples(shared: Path, tmp_path: Path):
    folder = model_folder(tmp_path, shared, "GPT2", tokenizer="gpt2", n_positions=128, n_embd=32, n_layer=1, n_head=2)
    settings = text_run(tmp_path, folder, task={"name": "causal_lm"}, train={"max_steps": 1})
    settings["adapter"] = {"method": "prompt_tuning", "num_virtual_tokens": 20}
    assert tiny.command("train", tiny.write_run(tmp_path, settings)).code == 0
    settings["task"]["max_length"] = 109
    with pytest.raises(UserError, match="128 positions of the model less the 20 of adapter.num_virtual_tokens; set it"):
        check_config(parse_config(settings, source="test"))


def test_a_decoder_has_a_limit_of_its_own(shared: Path, tmp_path: Path):
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    layers = {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    limits = {"max_encoder_position_embeddings": 128, "max_decoder_position_embeddings": 64, "attention_window": 16}
    fields = {"vocab_size": 50257, "d_model": 32, "decoder_start_token_id": 2, **limits, **heads, **layers}
    folder = model_folder(tmp_path, shared, "LED", tokenizer="gpt2", **fields)
    (tmp_path / "pairs.jsonl").write_text('{"source": "a", "target": "b"}\n')
    settings = text_run(tmp_path, folder, task={"name": "seq2seq"})
    settings["data"]["train"] = str(tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match="task.max_target_length = 128 is more than the 64 positions"):
        check_config(parse_config(settings, source="test"))
    settings["task"] |= {"max_target_length": 64, "max_length": 128}
    check_config(parse_config(settings, source="test"))
