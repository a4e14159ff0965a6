"""The demo: its pieces give right numbers, and the whole ends in a table and a model that predicts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.demo.__main__ import linear_probe, majority, read_split, scores


def test_a_split_is_read_as_text_and_label():
    rows = read_split("validation")
    assert len(rows) == 64
    assert Counter(label for _, label in rows)["storage"] == 8
    assert all(text and label for text, label in rows)


def test_the_majority_class_is_the_most_frequent():
    rows = [("a", "gpu"), ("b", "queue"), ("c", "queue"), ("d", "account")]
    assert majority(rows, 3) == ["queue"] * 3
    assert majority(rows[:2], 1) == ["gpu"], "the first by name where all are equally frequent"


def test_the_linear_probe_learns_from_the_encoder(minilm: Path):
    train, test = read_split("train")[:96], read_split("test")[:32]
    answers = linear_probe(minilm, train, test)
    right = np.mean([answer == label for answer, (_, label) in zip(answers, test, strict=True)])
    assert right > 0.5, "8 classes: one in eight by chance"


def test_scores_of_perfect_answers_have_no_spread():
    labels = ["a", "b", "c"] * 20
    assert scores(labels, labels) == (1.0, 1.0, 1.0, 1.0)


def test_the_interval_is_that_of_resampled_rows():
    random = np.random.default_rng(1)
    labels = np.array(["a", "b", "c"])[random.integers(0, 3, 120)]
    answers = np.where(random.random(120) < 0.8, labels, "a")
    accuracy, f1, low, high = scores(labels.tolist(), answers.tolist())
    assert accuracy == pytest.approx(np.mean(labels == answers))
    assert f1 == pytest.approx(macro_f1(labels, answers))
    resampled = [macro_f1(labels[rows], answers[rows]) for rows in random.integers(0, 120, (2000, 120))]
    assert (low, high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.015)
    assert scores(labels.tolist(), answers.tolist()) == (accuracy, f1, low, high)


def macro_f1(labels: np.ndarray, answers: np.ndarray) -> float:
    """By the definition: the mean over classes of 2 hits / (2 hits + false alarms + misses)."""
    values = []
    for name in ("a", "b", "c"):
        hits = np.sum((labels == name) & (answers == name))
        wrong = np.sum((labels == name) != (answers == name))
        values.append(2 * hits / (2 * hits + wrong) if hits + wrong else 0.0)
    return float(np.mean(values))


def test_without_its_encoder_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import ftscale.demo.__main__ as demo

    monkeypatch.setattr(demo, "ENCODER_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install 'ftscale\[demo\]'"):
        demo.encoder_folder()


@pytest.mark.slow
def test_the_demo_ends_in_a_table_and_a_model_that_predicts(minilm: Path, tmp_path: Path):
    settings = ("train.max_steps=3", f"data.cache_dir={tmp_path / 'cache'}")
    outcome = tiny.process("python", "-m", "ftscale.demo", *settings, cwd=tmp_path)
    assert outcome.code == 0, outcome.stderr
    table = [line for line in outcome.stdout.splitlines() if " to 0." in line or " to 1." in line]
    names = ("majority class", "encoder untouched, linear head", "fine-tuned with LoRA")
    assert len(table) == 3
    assert all(name in line for name, line in zip(names, table, strict=True))
    assert "0.125" in table[0], "one in eight"
    assert "The model is in runs/help-desk/model" in outcome.stdout
    noise = [line for line in outcome.stderr.splitlines() if line and not line[:2].isdigit()]
    assert noise == []
    example = outcome.stdout.splitlines()[-1]
    answer = tiny.process("bash", "-c", example, cwd=tmp_path)
    assert (answer.code, '"prediction": ' in answer.stdout) == (0, True), answer.stderr
