"""Runs whose losses and gradient norms must not depend on how the work was cut up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import launching
from strategies.jobs import tiny_bert

STEPS = 10
COMMITTED_STEPS = 20

Trajectory = list[tuple[float, float]]
"""Loss and gradient norm of each optimizer step."""


def causal_lm(shared: Path, work: Path) -> dict[str, Any]:
    """A real pretrained Llama on English captions: flat rows."""
    return {
        "task": {"name": "causal_lm"},
        "model": {"name": str(shared / "weights/stories260K")},
        "data": {
            "cache_dir": str(work / "cache"),
            "train": {
                "path": str(shared / "data/translation/multi30k_de-en/train.en.gz"),
                "format": "text",
                "limit": 300,
            },
        },
        **_common(),
    }


def _reviews(shared: Path, columns: dict[str, int]) -> dict[str, Any]:
    path = shared / "data/text_classification/sst2/train.tsv"
    return {"path": str(path), "header": False, "limit": 300, "columns": columns}


def masked_lm(shared: Path, work: Path) -> dict[str, Any]:
    """The same small BERT on the words that are hidden in film reviews."""
    return {
        "task": {"name": "masked_lm", "max_length": 64, "whole_words": True},
        "model": {"name": str(tiny_bert(shared, work)), "init": "random"},
        "data": {"cache_dir": str(work / "cache"), "train": _reviews(shared, {"text": 0})},
        **_common(),
    }


def multiple_choice(shared: Path, work: Path) -> dict[str, Any]:
    """The same small BERT on causes and effects: two choices or three."""
    return {
        "task": {"name": "multiple_choice"},
        "model": {"name": str(tiny_bert(shared, work)), "init": "random", "overrides": {"initializer_range": 0.2}},
        "data": {"cache_dir": str(work / "cache"), "train": str(_copa(shared, work))},
        **_common(),
    }


def choices_by_likelihood(shared: Path, work: Path) -> dict[str, Any]:
    """The same choices by a real Llama, as how likely each is behind its question."""
    return {
        "task": {"name": "multiple_choice", "scoring": "likelihood_per_character"},
        "model": {"name": str(shared / "weights/stories260K")},
        "data": {"cache_dir": str(work / "cache"), "train": str(_copa(shared, work))},
        **_common(),
    }


def _copa(shared: Path, work: Path) -> Path:
    rows = work / "copa.jsonl"
    if not rows.exists():
        items = ElementTree.parse(shared / "data/multiple_choice/balanced_copa/balacopa-dev-all.xml").getroot()
        rows.write_text("".join(f"{json.dumps(_choices(item, place))}\n" for place, item in enumerate(items[:300])))
    return rows


def _choices(item: ElementTree.Element, place: int) -> dict[str, Any]:
    choices = [item.findtext("a1"), item.findtext("a2"), *(["Nothing happened."] if place % 3 == 0 else [])]
    label = int(item.attrib["most-plausible-alternative"])
    return {"context": item.findtext("p"), "question": item.get("asks-for"), "choices": choices, "label": label}


def embedding(shared: Path, work: Path) -> dict[str, Any]:
    """The same small BERT on questions and their paragraphs, against those of the whole global batch."""
    columns = {"anchor": "question", "positive": "context"}
    rows = {"path": str(shared / "data/qa/squad_v1/test-v1.1.json"), "rows": "data.paragraphs.qas", "limit": 100}
    return {
        "task": {"name": "embedding", "max_length": 48, "temperature": 0.1},
        "model": {"name": str(tiny_bert(shared, work)), "init": "random"},
        "data": {"cache_dir": str(work / "cache"), "train": {**rows, "columns": columns}},
        **_common(),
    }


def reranking(shared: Path, work: Path) -> dict[str, Any]:
    """The same small BERT on questions with their paragraph and others."""
    rows = work / "reranking.jsonl"
    if not rows.exists():
        document = json.loads((shared / "data/qa/squad_v1/test-v1.1.json").read_text())
        paragraphs = document["data"][0]["paragraphs"]
        texts = [part["context"] for part in paragraphs]
        found = [
            {"anchor": asked["question"], "positive": texts[at], "negative": texts[at - 1 - at % 2 : at]}
            for at, part in enumerate(paragraphs[:32])
            if at > 1
            for asked in part["qas"][:4]
        ]
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return {
        "task": {"name": "reranking", "max_length": 48},
        "model": {"name": str(tiny_bert(shared, work)), "init": "random", "overrides": {"initializer_range": 0.2}},
        "data": {"cache_dir": str(work / "cache"), "train": str(rows)},
        **_common(),
    }


def question_answering(shared: Path, work: Path) -> dict[str, Any]:
    """The same small BERT on questions, with contexts in several windows."""
    rows = {"path": str(shared / "data/qa/squad_v1/test-v1.1.json"), "rows": "data.paragraphs.qas", "limit": 100}
    sizes = {"max_length": 96, "max_question": 40, "stride": 16}
    return {
        "task": {"name": "question_answering", **sizes},
        "model": {"name": str(tiny_bert(shared, work)), "init": "random"},
        "data": {"cache_dir": str(work / "cache"), "train": rows},
        **_common(),
    }


def text_classification(shared: Path, work: Path) -> dict[str, Any]:
    """A small BERT from random weights on film reviews."""
    return {
        "task": {"name": "text_classification", "max_length": 64},
        "model": {"name": str(tiny_bert(shared, work)), "init": "random"},
        "data": {"cache_dir": str(work / "cache"), "train": _reviews(shared, {"text": 0, "label": 1})},
        **_common(),
    }


TASKS = {
    "causal_lm": causal_lm,
    "choices_by_likelihood": choices_by_likelihood,
    "embedding": embedding,
    "masked_lm": masked_lm,
    "multiple_choice": multiple_choice,
    "question_answering": question_answering,
    "reranking": reranking,
    "text_classification": text_classification,
}
OPTIMIZERS = {"sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.0}, "adamw": {"name": "adamw", "lr": 1e-3}}


BERT_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
DROPOUT: dict[str, dict[str, float]] = {
    "causal_lm": {"attention_dropout": 0.1},
    "choices_by_likelihood": {"attention_dropout": 0.1},
    "embedding": BERT_DROPOUT,
    "masked_lm": BERT_DROPOUT,
    "multiple_choice": BERT_DROPOUT,
    "question_answering": BERT_DROPOUT,
    "reranking": BERT_DROPOUT,
    "text_classification": BERT_DROPOUT,
}
"""Overrides of each task's model."""


def launch(jobs: list[dict[str, Any]], *, processes: int, work: Path) -> None:
    """Run the jobs one after another in the same processes; those that say `resumes` once more from their middle."""
    launching.launch(Path(__file__).with_name("worker.py"), jobs, processes=processes, work=work)


def trajectory(run_folder: Path) -> Trajectory:
    """What metrics.jsonl says of each step."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"]


def largest_difference(one: Trajectory, other: Trajectory) -> float:
    """Largest relative difference of a loss or a gradient norm."""
    assert len(one) == len(other) in (STEPS, COMMITTED_STEPS), (len(one), len(other))
    return max(abs(a - b) / abs(b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


def _common() -> dict[str, Any]:
    return {
        "batch": {"global_size": 8},
        "train": {"max_steps": STEPS},
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "checkpoint": {"every": STEPS // 2, "keep": 9, "prove": "never"},
    }
