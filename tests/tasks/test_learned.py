"""A processor that training rows tell: in the key of prepared rows, in the saved model, and there used again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tasks.test_toys import run_of, train

ROWS = [("good good film", 1), ("a bad film", 0), ("good play", 1), ("bad bad play", 0)] * 8
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def table(path: Path, rows: Sequence[tuple[str, int]] = ROWS) -> str:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return str(path)


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Path:
    """A BERT of random weights over eight words."""
    from transformers import BertConfig

    BertConfig(vocab_size=50, **SIZES, **NO_DROPOUT).save_pretrained(tmp_path / "bert")
    rows = table(tmp_path / "rows.csv")
    return run_of(
        shared,
        tmp_path,
        "words",
        model={"name": str(tmp_path / "bert"), "init": "random"},
        data={"train": rows, "eval": rows, "cache_dir": str(tmp_path / "cache")},
        checkpoint={"prove": "final", "every": 1, "keep": 9},
        train={"max_steps": 4},
    )


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def scores(folder: Path, texts: Sequence[str]) -> list[float]:
    """By plain transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return [float(row.softmax(dim=-1)[1]) for row in logits]


def test_the_words_of_the_rows_are_learned_saved_and_used_again(run: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    checked = tiny.command("check", run, "--deep")
    assert checked.code == 0, checked.stderr + checked.stdout
    lines = train(run)
    assert [line for line in tiny.metrics(tmp_path / "run") if line.get("event") == "proved"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    assert words == ["<pad>", "<unk>", "a", "bad", "film", "good", "play"]
    texts = ["good film", "a bad bad play", "never seen"]
    (tmp_path / "input.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    answered = tiny.forked("predict", tmp_path / "run", tmp_path / "input.jsonl", "--trust-remote-code")
    assert answered.code == 0, answered.stderr
    answers = [json.loads(line)["score"] for line in answered.stdout.splitlines()]
    assert answers == pytest.approx(scores(tmp_path / "run/model", texts), abs=1e-6)
    assert tokenizer("never seen")["input_ids"] == [1, 1]
    evaluated = tiny.command("evaluate", tmp_path / "run", "--trust-remote-code")
    assert evaluated.code == 0, evaluated.stderr

    two = train(run, "distributed.strategy=ddp", f"run_folder={tmp_path / 'two'}", processes=2)
    assert losses(two) == pytest.approx(losses(lines), rel=2e-5)

    shutil.copytree(tmp_path / "run", tmp_path / "half")
    (tmp_path / "half/result.json").unlink()
    for folder in ("step-00000003", "step-00000004"):
        shutil.rmtree(tmp_path / "half/checkpoints" / folder)
    resumed = train(run, "--resume", f"run_folder={tmp_path / 'half'}")
    assert losses(resumed) == losses(lines)


def test_a_run_that_starts_from_the_saved_folder_goes_by_its_words(run: Path, tmp_path: Path):
    train(run, "checkpoint.prove=never")
    other = table(tmp_path / "other.csv", [("an unknown film", 1), ("zebra bad", 0)] * 8)
    again = [f"model={tmp_path / 'run/model'}", f"data.train={other}", f"run_folder={tmp_path / 'again'}"]
    checked = tiny.command("check", run, *again)
    assert checked.code == 0, checked.stderr + checked.stdout
    train(run, *again, "optimizer.lr=1e-12", "evaluation.keep_best=false", "checkpoint.prove=never")
    vocabularies = [json.loads((tmp_path / name / "model/tokenizer.json").read_text()) for name in ("run", "again")]
    assert vocabularies[0]["model"]["vocab"] == vocabularies[1]["model"]["vocab"]
    texts = ["good film", "zebra"]
    first, second = (scores(tmp_path / name / "model", texts) for name in ("run", "again"))
    assert second == pytest.approx(first, abs=1e-5)


def test_other_words_are_another_key_of_prepared_rows(run: Path, tmp_path: Path):
    def prepared() -> set[str]:
        return {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()}

    one_step = ("train.max_steps=1", "checkpoint.prove=never")
    train(run, *one_step)
    before = prepared()
    train(run, *one_step, f"run_folder={tmp_path / 'same'}")
    assert prepared() == before
    more = table(tmp_path / "more.csv", [*ROWS, ("one word more", 1)])
    train(run, *one_step, f"data.train={more}", f"run_folder={tmp_path / 'more'}")
    # what the rows told; the rows; those of data.eval, which are the same and are in other tokens
    assert len(prepared() - before) == 3
