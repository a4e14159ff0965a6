"""What is said of a run, and its curves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report.made import table, write_folder

from ftscale.base.errors import UserError
from ftscale.report.facts import read_run
from ftscale.report.rows import scored_rows
from ftscale.report.series import MOST_POINTS, evaluation_curve, training_curve
from ftscale.report.verdict import sentences
from ftscale.run import report_page

FALLING = [3.0 - 0.02 * step for step in range(100)]


def said(folder: Path, **records: Any) -> str:
    scored = {"eval": scored_rows(table(records), part="eval", unit="tokens")} if records else {}
    return " ".join(sentences(read_run(folder), scored))


@pytest.mark.parametrize(
    ("losses", "held_out", "expected", "unexpected"),
    [
        (FALLING, {50: 2.0, 100: 1.0}, "still falling", "over-fits"),
        (FALLING, {50: 1.0, 100: 1.5}, "over-fits: the held-out loss was least at step 50 (1)", "still falling"),
        (FALLING, {50: 1.0, 100: 1.01}, "training loss fell from 2.91", "over-fits"),
        ([1.0, 1.1] * 50, {}, "training loss did not fall", "fell from"),
        ([1.0] * 4, {}, "completed after 4 optimizer steps", "training loss"),
    ],
)
def test_whether_it_learned_and_over_fits(
    tmp_path: Path, losses: list[float], held_out: dict[int, float], expected: str, unexpected: str
):
    evaluations = {step: {"loss": loss} for step, loss in held_out.items()}
    text = said(write_folder(tmp_path / "run", losses, evaluations, result={}))
    assert expected in text
    assert unexpected not in text


def test_where_it_stopped_and_why(tmp_path: Path):
    going_on = write_folder(tmp_path / "going", FALLING[:30])
    assert "no end yet: 30 of 30 optimizer steps" in said(going_on)
    events = [{"event": "failed", "step": 3, "error": "the disk is full"}, {"event": "bad_batch", "step": 2}]
    failed = write_folder(tmp_path / "failed", FALLING[:3], result={"status": "failed"}, events=events)
    assert "It failed after 3 optimizer steps in 1.5 minutes. The error: the disk is full" in said(failed)
    assert "step with a bad loss or gradient (1)" in said(failed)


def test_a_result_with_its_interval_and_the_step_of_its_weights(tmp_path: Path):
    result = {
        "metrics": {"accuracy": 0.9, "test/accuracy": 0.8123},
        "best": {"step": 40, "metric": "accuracy", "value": 0.9},
        "intervals": {"test/accuracy": (0.77, 0.85)},
    }
    text = said(write_folder(tmp_path / "run", FALLING, result=result))
    assert "On test rows accuracy is 0.8123 (95 of 100 samples of such rows give 0.77 to 0.85)" in text
    assert "weights of step 40" in text


def test_a_model_that_only_knows_the_most_frequent_class_is_told(tmp_path: Path):
    folder = write_folder(tmp_path / "run", FALLING, result={})
    labels = ["a"] * 9 + ["b"] * 3
    constant = {"label": labels, "prediction": ["a"] * 12, "loss": [1.0] * 12, "score": [0.99] * 12}
    assert "no more than always saying the most frequent class would be (75.0%)" in said(folder, **constant)
    assert "off by 0.24" in said(folder, **constant)
    right = {**constant, "prediction": labels}
    assert "most frequent" not in said(folder, **right)


def test_a_long_curve_keeps_every_value_within_its_band(tmp_path: Path):
    losses = np.random.default_rng(0).normal(size=5000).round(3).tolist()
    run = read_run(write_folder(tmp_path / "run", losses, {5000: {"loss": 1.0}}))
    points = training_curve(run, "loss")
    assert len(points) == MOST_POINTS
    assert points[-1]["step"] == 5000
    assert points[-1]["tokens"] == 500_000
    assert points[-1]["minutes"] == pytest.approx(5000 * 0.5 / 60, rel=1e-3)
    starts = [0, *(point["step"] for point in points)]
    for start, point in zip(starts, points, strict=False):
        stretch = losses[start : point["step"]]
        assert point["value"] == pytest.approx(np.mean(stretch), abs=1e-4)
        assert (point["low"], point["high"]) == (min(stretch), max(stretch))
    assert evaluation_curve(run, "loss") == [
        {"step": 5000, "tokens": 500_000, "minutes": pytest.approx(83.3, rel=1e-2), "value": 1.0}
    ]


def test_figures_that_are_none_leave_a_gap_and_damaged_lines_are_left_out(tmp_path: Path):
    folder = write_folder(tmp_path / "run", [1.0, "nan", 3.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st\n')
    assert [point["step"] for point in training_curve(read_run(folder), "loss")] == [1, 3]


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run"):
        read_run(tmp_path)


def test_what_is_damaged_is_left_out(tmp_path: Path):
    folder = write_folder(tmp_path / "run", FALLING, {100: {"loss": 1.0}}, result={}, records={"loss": [1.0]}, data={})
    for name in ("config.yaml", "run.json", "result.json", "data_report.json", "rows/eval-00000100.parquet"):
        (folder / name).write_bytes(b"\x00damaged")
    run = read_run(folder)
    assert (run.config, run.about, run.result, run.data, run.records()) == (None, {}, {}, {}, None)


def test_what_goes_wrong_with_a_page_is_told_and_ends_no_run(tmp_path: Path, monkeypatch: Any):
    def fail(*arguments: Any) -> Any:
        raise ValueError("a value of another kind")

    monkeypatch.setattr(report_page, "data_report", fail)
    monkeypatch.setattr(report_page, "read_run", fail)
    said: list[str] = []
    monkeypatch.setattr(report_page.log, "warning", lambda text, *values: said.append(text % values))
    report_page.write_data_report(tmp_path, SimpleNamespace())
    report_page.write_page(tmp_path)
    assert said == [
        f"no {name} was written: ValueError: a value of another kind" for name in ("data_report.json", "report.html")
    ]
    assert list(tmp_path.iterdir()) == []
