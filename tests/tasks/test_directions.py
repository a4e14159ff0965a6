"""Every evaluator says which of its metrics are better low: perfect answers are better than wrong ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ftscale.config.schema import Config
from ftscale.config.tasks import SETTINGS
from ftscale.tasks import build_task
from ftscale.tasks.base import Task
from ftscale.tasks.batch import Batch, Outputs
from ftscale.train.evaluations import best_metric

CLASSES = [
    "answer",
    "soccer",
    "a",
    "b",
    "c",
    "d",
    "e",
]  # "wer" and "cer" are in names of classes; seven, for the top five
TEXTS, OTHER_TEXTS = ["the cat sat on the mat", "a dog ran home at night"], ["no", "not a word of it is so"]
LOSSES, OTHER_LOSSES = torch.full((7,), 0.1), torch.full((7,), 3.0)
Answered = tuple[Batch, Outputs, Outputs]
"""Rows, and right and wrong answers to all of them."""


def of(task: dict[str, Any], **evaluation: Any) -> Config:
    about = {"task": task, "run_folder": "run", "model": "model", "data": {"train": "rows.csv"}}
    return Config.model_validate({**about, "evaluation": evaluation})


def classes() -> Answered:
    right = torch.eye(7)
    wrong = torch.roll(right, 1, dims=1) - right
    outputs = {"logits": right, "losses": LOSSES}, {"logits": wrong, "losses": OTHER_LOSSES}
    return Batch({}, torch.arange(7), torch.arange(7)), *outputs


def sets() -> Answered:
    truth = torch.eye(7)
    outputs = {"logits": truth - 0.5, "losses": LOSSES}, {"logits": 0.5 - truth, "losses": OTHER_LOSSES}
    return Batch({}, torch.arange(7), truth), *outputs


def numbers() -> Answered:
    truth, wrong = torch.tensor([1.0, 2.0, 3.5]), torch.tensor([9.0, 8.0, 2.0])
    outputs = {"logits": truth[:, None], "losses": LOSSES[:3]}, {"logits": wrong[:, None], "losses": OTHER_LOSSES[:3]}
    return Batch({}, torch.arange(3), truth), *outputs


def tags() -> Answered:
    batch = Batch({}, torch.arange(1), notes=[{"places": [1, 2], "tags": [0, 2]}])
    return batch, {"tags": [[0, 2]], "losses": [0.1]}, {"tags": [[2, 0]], "losses": [3.0]}


def spans() -> Answered:
    """Two contexts of three words behind a token that stands for no answer: the second word answers the first one."""
    words = {"first": 1, "null": 0, "own": [0, 3], "begins": [0, 4, 8], "stops": [3, 7, 11], "window": 0}
    notes = [{**words, "text": "one two six", "answers": answers} for answers in (["two"], [])]
    batch = Batch({}, torch.arange(2), torch.tensor([[2, 2], [0, 0]]), notes=notes)
    here, nowhere = torch.tensor([0.0, 0.0, 5.0, 0.0]), torch.tensor([5.0, 0.0, 0.0, 0.0])
    right, wrong = [here, nowhere], [nowhere, here]
    return (
        batch,
        {"starts": right, "ends": right, "losses": LOSSES[:2]},
        {"starts": wrong, "ends": wrong, "losses": OTHER_LOSSES[:2]},
    )


def choices() -> Answered:
    """Of two questions with two choices the first is right."""
    notes, right = [{"texts": ["yes", "no"]}] * 2, torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    batch = Batch({}, torch.arange(2), torch.tensor([0, 0]), notes=notes)
    return batch, {"logits": right, "losses": LOSSES[:2]}, {"logits": -right, "losses": OTHER_LOSSES[:2]}


def found() -> Answered:
    """Each of twelve questions is nearest to its own text, or nearer to all others."""
    unit, hashes = torch.eye(12), torch.arange(24).view(12, 2)
    batch = Batch({}, torch.arange(12), torch.ones(12), extra={"text_hashes": hashes}, sequences=[2] * 12)
    right, wrong = (torch.stack([asked, unit], dim=1).flatten(0, 1) for asked in (unit, 1 - unit))
    return batch, {"vectors": right}, {"vectors": wrong}


def ordered() -> Answered:
    """Of two queries with twelve texts each the first one is right."""
    logits = torch.arange(12.0, 0, -1).repeat(2, 1)
    notes = [[number, *range(number * 100, number * 100 + 12)] for number in (1, 2)]
    batch = Batch({}, torch.arange(2), torch.eye(12)[[0, 0]], notes=notes, sequences=[12, 12])
    return batch, {"logits": logits, "losses": LOSSES[:2]}, {"logits": -logits, "losses": OTHER_LOSSES[:2]}


def pairs() -> Answered:
    """The first two texts are alike, the others are not."""
    hashes, scores = torch.arange(6).view(3, 2), torch.tensor([1.0, 0.0, 0.5])
    batch = Batch({}, torch.arange(3), scores, extra={"text_hashes": hashes}, sequences=[2, 2, 2])
    one, other, both = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])
    right = torch.stack([one, one, one, other, one, both])
    return batch, {"vectors": right}, {"vectors": torch.stack([one, other, one, one, one, both])}


def neighbours() -> Answered:
    """Twelve labels with two texts each, which have one vector, or opposite ones."""
    labels, hashes = torch.arange(12).repeat_interleave(2), torch.arange(24).view(24, 1)
    batch = Batch({}, torch.arange(24), labels, extra={"text_hashes": hashes}, sequences=[1] * 24)
    right, wrong = (torch.stack([torch.eye(12), sign * torch.eye(12)], dim=1).flatten(0, 1) for sign in (1, -1))
    return batch, {"vectors": right}, {"vectors": wrong}


def texts(notes: list[Any]) -> Answered:
    sums = {"losses": LOSSES[:2], "counts": torch.tensor([6, 6]), "correct": torch.tensor([6, 5])}
    other = {"losses": OTHER_LOSSES[:2], "counts": torch.tensor([6, 6]), "correct": torch.tensor([0, 1])}
    batch = Batch({}, torch.arange(2), notes=notes)
    return batch, {**sums, "predictions": TEXTS}, {**other, "predictions": OTHER_TEXTS}


TASKS: dict[str, tuple[dict[str, Any], Answered]] = {
    "one class": ({"name": "text_classification", "labels": CLASSES}, classes()),
    "several classes": ({"name": "text_classification", "problem": "multi_label", "labels": CLASSES}, sets()),
    "numbers": ({"name": "text_classification", "problem": "regression"}, numbers()),
    "tags": ({"name": "token_classification", "labels": ["B-answer", "I-answer", "O"], "scheme": "IOB2"}, tags()),
    "images": ({"name": "image_classification", "labels": CLASSES}, classes()),
    "translations": ({"name": "seq2seq"}, texts([[text] for text in TEXTS])),
    "answers": ({"name": "question_answering", "no_answer": True}, spans()),
    "choices": ({"name": "multiple_choice"}, choices()),
    "texts found": ({"name": "embedding", "loss": "infonce"}, found()),
    "pairs of texts": ({"name": "embedding", "loss": "cosent"}, pairs()),
    "texts with labels": ({"name": "embedding", "loss": "batch_hard_triplet"}, neighbours()),
    "texts in order": ({"name": "reranking", "loss": "listwise"}, ordered()),
    "masks": ({"name": "masked_lm"}, texts([])),
    "turns": (
        {"name": "causal_lm", "generate": {"max_new_tokens": 4}},
        texts([{"prompt_ids": [1], "reference": text} for text in TEXTS]),
    ),
}


def scores(task: Task, batch: Batch, outputs: Outputs) -> dict[str, float]:
    evaluator = task.evaluator()
    evaluator.update(outputs, batch)
    return evaluator.compute()


def test_every_task_is_here():
    assert {about["name"] for about, _ in TASKS.values()} == set(SETTINGS)


@pytest.mark.parametrize("name", TASKS)
def test_perfect_answers_are_better_than_wrong_ones(name: str):
    about, (batch, right, wrong) = TASKS[name]
    task = build_task(of(about).task)
    best, worst = scores(task, batch, right), scores(task, batch, wrong)
    assert set(best) == set(worst) == set(task.metric_names())
    for metric in best:
        chosen, higher = best_metric(of(about, metric=metric).evaluation, task)
        assert chosen == metric
        assert best[metric] > worst[metric] if higher else best[metric] < worst[metric], metric
    assert best_metric(of(about).evaluation, task)[0] in best


def test_the_names_that_are_better_low_are_those_of_a_metric_or_of_the_loss():
    tasks = [build_task(of(about).task) for about, _ in TASKS.values()]
    named = {metric for task in tasks for metric in task.metric_names()}
    low = {metric for task in tasks for metric in task.evaluator().lower_is_better}
    assert low == {"loss", "perplexity", "mse", "mae"} <= named


@pytest.mark.parametrize("metric", ["f1/answer", "recall/soccer"])
def test_the_name_of_a_class_says_nothing_of_the_direction(metric: str):
    about, _ = TASKS["one class"]
    assert best_metric(of(about, metric=metric).evaluation, build_task(of(about).task)) == (metric, True)
