"""Reranking against sentence-transformers' CrossEncoder, and by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from ftscale import train
from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.run.evaluate import evaluate_run
from ftscale.run.predict import predict_file
from ftscale.tasks import build_task
from ftscale.tasks.base import Task
from ftscale.tasks.ranking_scores import Ranked, ranked, scores_of_lists

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROWS: list[dict[str, Any]] = [
    {"anchor": "who built the bridge", "positive": "a mason did", "negative": ["the bridge is long", "nobody knows"]},
    {"anchor": "who sings at dawn", "positive": "birds do, all of them", "negative": ["a stone"]},
    {"anchor": "what is red", "positive": "a rose is red", "negative": ["the sea is blue at noon", "grass", "snow"]},
]


def task_of(shared: Path, **settings: Any) -> Task:
    processor = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    return build_task(SETTINGS["reranking"](**{"name": "reranking", "loss": "listwise", **settings}), processor)


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, num_labels=1, initializer_range=0.2, **SIZES)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return BertForSequenceClassification(config).eval()


@pytest.mark.parametrize("loss", ["listwise", "pointwise"])
def test_losses_are_those_over_a_forward_for_each_text(shared: Path, loss: str):
    task, model = task_of(shared, loss=loss), bert()
    samples = [replace(sample, number=at) for at, sample in enumerate(task.prepare(ROWS))]
    batch = task.collate(samples, layout="padded", train=False)
    expected = []
    for row in ROWS:
        texts = [row["positive"], *row["negative"]]
        logits = torch.cat(
            [model(**task.processor(row["anchor"], text, return_tensors="pt")).logits[0] for text in texts]
        )
        right = torch.tensor([1.0] + [0.0] * (len(texts) - 1))
        listwise = -logits.log_softmax(dim=0)[0]
        pointwise = functional.binary_cross_entropy(logits.sigmoid(), right, reduction="sum")
        expected.append(listwise if loss == "listwise" else pointwise)
    torch.testing.assert_close(
        task.outputs(model, batch)["losses"], torch.stack(expected).detach(), rtol=1e-4, atol=1e-6
    )
    assert task.count(batch) == {"loss": 3 if loss == "listwise" else 9}


def test_the_order_is_that_of_all_texts_of_a_query():
    """Two rows of one query: the right text is second of four; another query finds its text first."""
    rows = [
        Ranked(1, (10, 11), (0.5, 0.9), (1.0, 0.0), 1.0, 1),
        Ranked(1, (10, 12, 13), (0.5, 0.4, 0.1), (1.0, 0.0, 0.0), 2.0, 1),
        Ranked(2, (20, 21), (2.0, 1.0), (1.0, 0.0), 0.0, 1),
    ]
    scores = scores_of_lists(ranked(rows))
    assert scores["loss"] == 1.0
    assert scores["mrr@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["recall@1"] == 0.5


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"text": "a", "text_pair": "b", "score": 4}], "score = 4 must be from 0 to 1"),
        ([{"text": "a", "text_pair": "b", "score": "x"}], "score = 'x' must be a number"),
        ([{"anchor": None, "positive": "b"}], "anchor = None must be a text"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named(shared: Path, rows: list[dict[str, Any]], problem: str):
    with pytest.raises(UserError, match=problem):
        task_of(shared, loss="pointwise").prepare(rows)


def test_a_query_with_one_text_has_no_order(shared: Path):
    [sample] = task_of(shared).prepare([{"anchor": "a", "positive": "b", "negative": None}])
    assert sample.drop == "no_target"
    [sample] = task_of(shared, loss="pointwise").prepare([{"anchor": "a", "positive": "b", "negative": None}])
    assert (sample.drop, sample.counts) == ("", {"loss": 1})


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranking")
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    bert().save_pretrained(folder / "base")
    task_of(shared).processor.save_pretrained(folder / "base")
    config = {
        "task": "reranking",
        "run_folder": str(folder / "run"),
        "model": str(folder / "base"),
        "data": {
            "train": str(folder / "rows.jsonl"),
            "eval": str(folder / "rows.jsonl"),
            "cache_dir": str(folder / "cache"),
        },
        "batch": {"global_size": 3, "micro_size": 2},
        "train": {"max_steps": 4},
        "optimizer": {"lr": 1e-3},
    }
    train(parse_config(config, source="the test"))
    return folder


def test_cross_encoder_loads_the_saved_folder_and_scores_the_same(run: Path):
    pairs = [(row["anchor"], text) for row in ROWS for text in (row["positive"], *row["negative"])]
    lines = [json.dumps({"anchor": query, "positive": text}) for query, text in pairs]
    (run / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    predict_file(run / "run", str(run / "pairs.jsonl"), out=run / "out.jsonl")
    ours = [json.loads(line)["prediction"] for line in (run / "out.jsonl").read_text().splitlines()]
    theirs = CrossEncoder(str(run / "run/model"), device="cpu").predict(pairs)
    assert ours == pytest.approx(theirs.tolist(), abs=1e-5)


def test_a_run_learns_the_order(run: Path):
    lines = [json.loads(line) for line in (run / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line["loss"] for line in lines if line["kind"] == "train"]
    assert steps[-1] < steps[0]
    scores = evaluate_run(run / "run", data=str(run / "rows.jsonl"))
    assert set(scores) == {"loss", "recall@1", "recall@10", "mrr@10", "ndcg@10", "map@100"}
