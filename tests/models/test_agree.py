"""One padding id in config, tokenizer and generation config: a row's scores are its own, whatever stands beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    RobertaConfig,
)

from ftscale.models.agree import agree_on_padding
from ftscale.models.prove import prove_saved
from ftscale.run.predict import open_predictor

TEXTS = ["no", "a warm and funny film", "an endless mess", "the cast, for once, is a delight to watch all night " * 3]


def llama_with_two_ids(shared: Path, work: Path) -> Path:
    """The 260 K Llama whose config pads with 0, and whose tokenizer pads with the end token."""
    folder = work / "llama"
    config = AutoConfig.from_pretrained(shared / "weights/stories260K")
    model = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K", config=config)
    model.config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id != 0
    return folder


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("two_ids")
    settings = tiny.settings(shared, work, model=str(llama_with_two_ids(shared, work)), checkpoint={"prove": "final"})
    outcome = tiny.command("train", tiny.write_run(work, settings))
    assert outcome.code == 0, outcome.stderr
    return work / "run"


def test_the_saved_folder_has_one_padding_id(run: Path):
    tokenizer, config = AutoTokenizer.from_pretrained(run / "model"), AutoConfig.from_pretrained(run / "model")
    assert config.pad_token_id == tokenizer.pad_token_id != 0
    (proved,) = [line for line in tiny.metrics(run) if line.get("event") == "proved"]
    assert proved["padding_change"] < 1e-5


def test_plain_transformers_scores_a_row_alone_as_beside_a_longer_one(run: Path):
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    with torch.no_grad():
        together = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_predictions_do_not_depend_on_the_batch(run: Path):
    rows = [{"text": text, "_columns": {}} for text in TEXTS]
    scores = []
    for size in (1, 4):
        with open_predictor(run, batch_size=size) as predictor:
            scores.append([answer.as_dict()["score"] for answer in predictor.answers(rows)])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_folder_with_two_ids_is_not_proved(shared: Path, run: Path, tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    inputs = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    with torch.no_grad():
        logits = model(**inputs).logits
    with pytest.raises(RuntimeError, match="beside a longer one than alone.*pad_token_id = 0, its tokenizer pads with"):
        prove_saved(
            tmp_path,
            inputs,
            {"logits": logits},
            auto_class="AutoModelForSequenceClassification",
            dtype=torch.float32,
            device=torch.device("cpu"),
            quantized=False,
        )


def test_a_language_model_generates_with_the_tokenizers_padding(shared: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    data = {"train": str(tmp_path / "rows.jsonl"), "cache_dir": str(tmp_path / "cache")}
    model = str(llama_with_two_ids(shared, tmp_path))
    settings = tiny.settings(shared, tmp_path, model=model, data=data, task={"name": "causal_lm"})
    assert tiny.command("train", tiny.write_run(tmp_path, settings)).code == 0
    pad = AutoTokenizer.from_pretrained(tmp_path / "run/model").pad_token_id
    assert AutoConfig.from_pretrained(tmp_path / "run/model").pad_token_id == pad
    assert GenerationConfig.from_pretrained(tmp_path / "run/model").pad_token_id == pad


def test_a_model_that_counts_positions_from_its_padding_keeps_it(shared: Path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = AutoModelForSequenceClassification.from_config(RobertaConfig(vocab_size=50257, **sizes))
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    tokenizer.pad_token = tokenizer.eos_token
    agree_on_padding(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1
