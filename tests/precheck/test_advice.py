"""Advice of a practitioner: where it is given, with which numbers, and that the shipped recipes get none."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scipy.stats import binomtest, norm, pearsonr

from ftscale.base.logs import log
from ftscale.checks import check_run
from ftscale.config import Config, load_config, parse_config
from ftscale.precheck.advice import (
    batch_warnings,
    class_warnings,
    cut_warnings,
    evaluation_warnings,
    fisher,
    held_out_warnings,
    rate_warnings,
    wilson,
)
from ftscale.run.prepared_data import prepare_inputs

RECIPES = sorted((tiny.ROOT / "launch/recipes").glob("*.yaml"))
LORA = {"adapter": {"method": "lora", "r": 8}}


def config(lr: float = 5e-5, **changes: Any) -> Config:
    plain = {"task": "text_classification", "run_folder": "run", "model": "m", "data": {"train": "rows.csv"}}
    settings = {**plain, **changes}
    return parse_config({**settings, "optimizer": {"lr": lr, **settings.get("optimizer", {})}}, source="here")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_rate_of_a_shipped_recipe_is_warned_of(recipe: Path):
    assert rate_warnings(load_config(recipe)) == []


@pytest.mark.parametrize(
    ("lr", "changes", "usual"),
    [
        (2e-2, {}, "1e-06 to 0.0005 that all weights of a pretrained model usually has with adamw"),
        (1e-5, LORA, "0.0001 to 0.002 that a low-rank adapter usually has with adamw (adapter.method = lora)"),
        (1e-6, {"trainable": {"scope": "head"}}, "0.0001 to 0.01 that a new head on frozen weights usually has"),
        (0.1, {"model": {"name": "m", "init": "random"}}, "0.0001 to 0.003 that random weights usually has"),
        (2e-3, {"optimizer": {"name": "lion_8bit"}}, "2e-07 to 0.0001 that all weights"),
        (5e-6, {"optimizer": {"name": "sgd"}}, "0.0001 to 0.05 that all weights"),
        (5e-6, {"adapter": {"method": "prompt_tuning"}}, "0.001 to 0.3 that a learned prompt"),
    ],
)
def test_a_rate_of_another_kind_of_training_is_told_with_the_usual_one(lr: float, changes: dict[str, Any], usual: str):
    [sentence] = rate_warnings(config(lr, **changes))
    assert sentence.startswith(f"optimizer.lr = {lr:g} is far from the {usual}")
    advised = float(sentence.rpartition("set optimizer.lr: ")[2].rstrip("."))
    assert rate_warnings(config(advised, **changes)) == []


@pytest.mark.parametrize(
    ("lr", "changes"),
    [
        (1e-5, {}),
        (1e-3, {}),
        (2e-4, LORA),
        (2e-4, {**LORA, "model": {"name": "m", "quantization": "nf4"}, "optimizer": {"name": "paged_adamw_8bit"}}),
        (1e-2, {"optimizer": {"name": "sgd"}}),
        (0.3, {"adapter": {"method": "prompt_tuning"}}),
        (1e-6, {"adapter": {"method": "fourierft"}}),
    ],
)
def test_a_rate_as_papers_have_it_is_not_told(lr: float, changes: dict[str, Any]):
    assert rate_warnings(config(lr, **changes)) == []


def test_a_batch_of_more_than_all_rows_is_told():
    assert batch_warnings(config(batch={"global_size": 64}), rows=64) == []
    assert batch_warnings(config(batch={"global_size": 64, "unit": "targets"}), rows=10) == []
    [sentence] = batch_warnings(config(batch={"global_size": 64}), rows=50)
    assert sentence.startswith("batch.global_size = 64 is more than the 50 training rows")
    assert "set batch.global_size: 5 " in sentence


@pytest.mark.parametrize("rows", [5, 20, 29, 400])
def test_the_interval_is_wilsons(rows: int):
    right = round(0.8 * rows)
    expected = binomtest(right, rows).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(right / rows, rows) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("rows", [4, 10, 29])
def test_the_interval_of_a_correlation_is_fishers(rows: int):
    first, second = np.random.default_rng(rows).normal(size=(2, rows))
    found = pearsonr(first, second)
    expected = found.confidence_interval(0.95)
    assert fisher(found.statistic, rows, ranks=False) == pytest.approx((expected.low, expected.high), abs=1e-6)
    # of ranks: Bonett and Wright, Psychometrika 65 (2000), whose variance is (1 + r**2 / 2) / (n - 3)
    low, high = norm.interval(0.95, loc=np.arctanh(0.8), scale=np.sqrt(1.32 / (rows - 3)))
    assert fisher(0.8, rows, ranks=True) == pytest.approx((np.tanh(low), np.tanh(high)), abs=1e-6)
    assert fisher(0.8, 3, ranks=True) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("accuracy", "accuracy = 0.8 among so many is, of all such rows, between 0.49 and 0.94 (95 % interval of Wils"),
        ("exact_match", "exact_match = 0.8 among so many is, of all such rows, between 0.49 and 0.94 (95 % interval"),
        (
            "pearson",
            "pearson = 0.8 among so many is, of all such rows, between 0.34 and 0.95 (95 % interval of Fisher)",
        ),
        ("spearman", "spearman = 0.8 among so many is, of all such rows, between 0.24 and 0.96 (95 % interval of Fish"),
        ("bleu", "the 95 % interval of bleu is about 3.2 times as wide as of 100 rows; hold out 30 rows or more"),
        ("f1/spam", "the 95 % interval of f1/spam is about 3.2 times as wide as of 100 rows"),
    ],
)
def test_few_held_out_rows_are_told_with_the_interval_of_the_metric_that_chooses(metric: str, told: str):
    [sentence] = held_out_warnings("data.eval", rows=10, metric=metric)
    assert sentence.startswith(f"data.eval: 10 rows tell little: {told}")
    assert held_out_warnings("data.eval", rows=30, metric=metric) == []


def test_an_interval_is_wider_by_the_root_of_the_rows():
    scores = np.random.default_rng(0).normal(size=(20_000, 129))  # a loss a row
    widths = [np.ptp(np.quantile(scores[:, :rows].mean(axis=1), [0.025, 0.975])) for rows in (25, 100)]
    [sentence] = held_out_warnings("data.eval", rows=25, metric="loss")
    assert f"about {widths[0] / widths[1]:.1f} times as wide as of 100 rows" in sentence


def test_classes_of_one_row_and_those_that_are_not_scored_are_named():
    train = {"ham": 90, "spam": 40, "odd": 1, "none": 0}
    rare, absent = class_warnings(train, {"ham": 9, "odd": 1})
    assert rare.startswith("data.train: 'odd', 'none' have one row or none")
    assert absent.startswith("data.eval: 'spam' has no row")
    assert class_warnings({"ham": 90, "spam": 40}, {"ham": 9, "spam": 4}) == []
    assert class_warnings({"ham": 90, "spam": 40}, None) == []
    assert class_warnings({"ham": 0, "spam": 0}, None) == []


def test_evaluation_at_every_step_of_a_long_run_is_told_with_its_share():
    often = config(batch={"global_size": 32}, evaluation={"every": 1})
    [sentence] = evaluation_warnings(often, rows=960, num_steps=500)
    assert "500 evaluations of 960 rows take 91% of the run's time" in sentence  # 960 / 3 = 320 of 352 rows' work
    better = int(sentence.rpartition("set evaluation.every: ")[2].rstrip("."))
    assert 320 / (320 + 32 * better) == pytest.approx(0.1, abs=0.01)
    assert evaluation_warnings(often, rows=960, num_steps=9) == []
    assert evaluation_warnings(often, rows=90, num_steps=500) == []


def test_rows_that_are_mostly_cut_are_told():
    [sentence] = cut_warnings("data.train", cut=60, rows=100)
    assert sentence.startswith("data.train: 60 of 100 rows")
    assert cut_warnings("data.train", cut=10, rows=100) == []


def test_check_and_train_give_the_same_advice(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    settings = tiny.settings(shared, tmp_path, optimizer={"lr": 1.0}, train={"epochs": 200})
    settings["task"]["max_length"] = 4
    settings["data"]["train"] |= {"limit": 6}
    settings["data"]["eval"] |= {"limit": 12}
    file = tiny.write_run(tmp_path, {**settings, "evaluation": {"every": 1}})
    checked = check_run(file).warnings
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level(logging.WARNING, logger="ftscale"):
        prepare_inputs(load_config(file))
    beginnings = (
        "optimizer.lr = 1 is far from",
        "batch.global_size = 8 is more than the 6 training rows",
        "data.train: 6 of 6 rows",
        "data.eval: 12 of 12 rows",
        "data.eval: 12 rows tell little: accuracy = 0.8",
    )
    for beginning in beginnings:
        [sentence] = [text for text in checked if text.startswith(beginning)]
        assert sentence in caplog.messages


def test_rows_are_counted_and_not_the_windows_of_their_contexts(
    shared: Path, minilm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    context = "Long ago a king lived in a tower by the sea. " * 20
    rows = [{"question": f"Who lived there ({n})?", "context": context, "answers": ["a king"]} for n in range(6)]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tiny.settings(
        shared,
        tmp_path,
        task={"name": "question_answering", "max_length": 64, "max_question": 16, "stride": 16},
        model=str(minilm),
        data={name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")} | {"cache_dir": f"{tmp_path}/cache"},
    )
    file = tiny.write_run(tmp_path, settings)
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level(logging.WARNING, logger="ftscale"):
        inputs = prepare_inputs(load_config(file))
    assert inputs.evaluation is not None
    assert len(inputs.evaluation) > 2 * len(rows)
    told = "data.eval: 6 rows tell little: the 95 % interval of f1 is about 4.1 times as wide as of 100 rows"
    for said in (check_run(file).warnings, caplog.messages):
        assert [text for text in said if "tell little" in text][0].startswith(told)


def test_a_share_that_is_held_out_is_left_out_of_the_steps_once(shared: Path, tmp_path: Path):
    settings = tiny.settings(shared, tmp_path, train={"epochs": 1})
    settings["data"] = {**settings["data"], "eval_ratio": 0.5}
    del settings["data"]["eval"]
    schedule = check_run(tiny.write_run(tmp_path, settings)).facts["schedule"]
    assert schedule["steps_per_epoch"] == math.ceil(64 * 0.5 / 8)
