"""A metric that cannot move on the evaluation rows is named before the run."""

from __future__ import annotations

from typing import Any

import pytest

from ftscale.checks.metric import metric_warnings
from ftscale.checks.sample import DataSample, Part
from ftscale.config import parse_config
from ftscale.data.sample import Sample
from ftscale.tasks import build_task


def warnings(task: dict[str, Any], samples: list[Sample], *, metric: str | None = None) -> list[str]:
    """Of a run whose evaluation rows became these samples."""
    settings = {"task": task, "run_folder": "r", "model": "m", "data": {"train": "t.csv", "eval": "e.csv"}}
    config = parse_config({**settings, "evaluation": {"metric": metric}}, source="test")
    part = Part([], samples, len(samples), [])
    return metric_warnings(DataSample(config, build_task(config.task), part, part))


def translations(*texts: str) -> list[Sample]:
    return [Sample(note=[text]) for text in texts]


def answers(*texts: str) -> list[Sample]:
    return [Sample(note={"prompt_ids": [1], "reference": text}) for text in texts]


def numbers(*values: float) -> list[Sample]:
    return [Sample(label=value) for value in values]


def test_targets_of_under_four_words_are_too_short_for_bleu():
    (warning,) = warnings({"name": "seq2seq"}, translations("a red cat", "two dogs", "one two three four"))
    assert "evaluation.metric = bleu: 2 of 3 targets have fewer than 4 words" in warning
    assert warnings({"name": "seq2seq"}, translations("a red cat.", "two dogs ran home")) == []  # the full stop counts
    assert warnings({"name": "seq2seq"}, translations("a red cat", "two dogs"), metric="chrf") == []


@pytest.mark.parametrize(
    ("metric", "text"), [("rouge1", "\u043a\u043e\u0442"), ("rouge2", "cat"), ("rougeL", "\u732b")]
)
def test_rouge_counts_words_of_a_to_z_alone(metric: str, text: str):
    task = {"name": "causal_lm", "generate": {"max_new_tokens": 4}}
    assert "fewer than" in warnings(task, answers(text), metric=metric)[0]
    assert warnings(task, answers("a cat"), metric=metric) == []


def test_a_correlation_with_one_number_stays_at_zero():
    task = {"name": "text_classification", "problem": "regression"}
    assert "all labels are one and the same" in warnings(task, numbers(2.0, 2.0))[0]
    assert warnings(task, numbers(2.0, 2.5)) == []
    assert warnings(task, numbers(2.0, 2.0), metric="mae") == []
