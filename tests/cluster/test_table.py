"""The table of results of several runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.cluster.table import as_text, result_table
from ftscale.config import load_config
from ftscale.config.yaml_text import write_yaml
from ftscale.data.chat import read_template


def finished(folder: Path, *, seed: int, lr: float, accuracy: float | None) -> Path:
    """A run folder as a run leaves it; accuracy None = not finished."""
    folder.mkdir(parents=True)
    values = {
        "task": "text_classification",
        "run_folder": str(folder),
        "model": "some/model",
        "data": {"train": "rows.csv"},
        "seed": seed,
        "optimizer": {"lr": lr},
    }
    (folder / "config.yaml").write_text(write_yaml(values))
    if accuracy is not None:
        metrics = {"accuracy": accuracy, "f1/ham": 0.5}
        (folder / "result.json").write_text(json.dumps({"status": "completed", "metrics": metrics}))
    return folder


def test_runs_over_seeds_have_a_mean_and_a_deviation(tmp_path: Path):
    for seed, accuracy in enumerate((0.80, 0.90, 0.85)):
        finished(tmp_path / f"a/seed-{seed}", seed=seed, lr=1e-4, accuracy=accuracy)
    rows = result_table([tmp_path / "a"])
    assert [row["run"] for row in rows] == ["seed-0", "seed-1", "seed-2", "mean +- deviation"]
    assert rows[1] == {"run": "seed-1", "seed": "1", "status": "completed", "accuracy": "0.9"}
    assert rows[3] == {"run": "mean +- deviation", "seed": "", "status": "3 of 3", "accuracy": "0.85 +- 0.05 (3)"}


def test_each_setting_has_its_own_mean_and_unfinished_runs_are_not_in_it(tmp_path: Path):
    for lr in (1e-4, 2e-4):
        for seed in range(3):
            accuracy = None if (lr, seed) == (2e-4, 2) else 0.5 + 1000 * lr + 0.1 * seed
            finished(tmp_path / f"{lr}-{seed}", seed=seed, lr=lr, accuracy=accuracy)
    rows = result_table(sorted(tmp_path.iterdir()))
    means = [row for row in rows if row["run"].startswith("mean")]
    assert [(row["optimizer.lr"], row["status"], row["accuracy"]) for row in means] == [
        ("0.0001", "3 of 3", "0.7 +- 0.1 (3)"),
        ("0.0002", "2 of 3", "0.75 +- 0.0707 (2)"),
    ]
    assert [row["status"] for row in rows].count("unfinished") == 1


def test_chat_templates_which_configurations_hold_as_texts_are_named(tmp_path: Path):
    for name, template in (("one", read_template("alpaca")), ("two", read_template("chatml")), ("three", "{{ 'x' }}")):
        folder = finished(tmp_path / name, seed=0, lr=1e-4, accuracy=0.5)
        values = {**load_config(folder / "config.yaml").model_dump(), "task": {"name": "causal_lm"}}
        values["task"]["chat_template"] = template
        (folder / "config.yaml").write_text(write_yaml(values))
    rows = result_table([tmp_path / name for name in ("one", "two", "three")])
    assert [row["task.chat_template"] for row in rows] == ["alpaca", "chatml", "\"{{ 'x' }}\""]


def test_the_text_has_aligned_columns(tmp_path: Path):
    finished(tmp_path / "one", seed=0, lr=1e-4, accuracy=0.5)
    finished(tmp_path / "another", seed=0, lr=1e-5, accuracy=0.75)
    printed = tiny.command("table", tmp_path / "one", tmp_path / "another").stdout.splitlines()
    assert printed == [
        "run      optimizer.lr  status     accuracy",
        "one      0.0001        completed  0.5",
        "another  1e-05         completed  0.75",
    ]
    assert as_text([{"a": "1", "b": ""}]) == "a  b\n1"


def test_a_folder_without_runs_is_a_mistake(tmp_path: Path):
    with pytest.raises(UserError, match="no run in"):
        result_table([tmp_path])
