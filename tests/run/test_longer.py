"""A run that is resumed for longer, or at another rate: as a run that had it from the start, as far as that is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

STEPS = 4
CONSTANT = {"schedule": {"name": "constant"}}
EVERY = {"every": 1, "keep": 99, "prove": "never"}


@pytest.fixture
def file(shared: Path, tmp_path: Path) -> Path:
    return run_of(shared, tmp_path)


def run_of(shared: Path, work: Path, **changes: Any) -> Path:
    common = {"train": {"max_steps": STEPS}, "checkpoint": EVERY, "evaluation": {"every": 2}}
    return tiny.write_run(work, tiny.settings(shared, work, **{**common, **changes}))


def train(file: Path, *overrides: str) -> str:
    done = tiny.command("train", file, *overrides)
    assert done.code == 0, done.stderr
    return done.stderr


def figures(folder: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in tiny.steps(folder)]


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def undo_end(folder: Path, *, after: int) -> None:
    """The run as a kill after the checkpoint of that step would have left it."""
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > after:
            shutil.rmtree(checkpoint)


def test_a_finished_run_goes_on_as_the_longer_run_does(shared: Path, tmp_path: Path):
    longer = run_of(shared, tmp_path / "longer", train={"max_steps": 2 * STEPS}, **CONSTANT)
    train(longer)
    file = run_of(shared, tmp_path, **CONSTANT)
    train(file)
    said = train(file, "--resume", f"train.max_steps={2 * STEPS}")
    folder, whole = tmp_path / "run", tmp_path / "longer/run"
    assert figures(folder) == figures(whole)
    assert figures(folder, "rows_hash") == figures(whole, "rows_hash")
    assert json.loads((folder / "result.json").read_text())["steps"] == 2 * STEPS
    weights = [path / "model/model.safetensors" for path in (folder, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert f"changed from step {STEPS} on: train.max_steps: {STEPS} -> {2 * STEPS}" in said
    [line] = history(folder)
    assert (line["after_step"], line["changed"]) == (STEPS, [f"train.max_steps: {STEPS} -> {2 * STEPS}"])
    assert "nothing to do" in train(file, "--resume", f"train.max_steps={2 * STEPS}")


def test_a_run_that_was_cut_short_by_a_resume_goes_on_to_the_length_that_it_had(file: Path, tmp_path: Path):
    """The checkpoint that it goes on from was of the longer one, so that it asks for nothing new."""
    train(file, f"train.max_steps={2 * STEPS}")
    folder = tmp_path / "run"
    undo_end(folder, after=STEPS)
    cut = train(file, "--resume")
    assert "the run ends here: the checkpoint was of a longer one" in cut
    assert json.loads((folder / "result.json").read_text())["steps"] == STEPS
    train(file, "--resume", f"train.max_steps={2 * STEPS}")
    assert json.loads((folder / "result.json").read_text())["steps"] == 2 * STEPS


def test_the_schedule_begins_anew_over_the_steps_that_are_left_and_stays_so(file: Path, tmp_path: Path):
    train(file)
    settings = ("--resume", f"train.max_steps={2 * STEPS}", "optimizer.lr=0.002", "schedule.warmup_steps=1")
    train(file, *settings)
    folder = tmp_path / "run"
    falling = [0.001 * left / STEPS for left in range(STEPS, 0, -1)]
    again = [0.0, *(0.002 * left / (STEPS - 1) for left in range(STEPS - 1, 0, -1))]
    assert figures(folder, "lr") == pytest.approx([*falling, *again])
    losses, rates = figures(folder), figures(folder, "lr")
    undo_end(folder, after=STEPS + 2)
    train(file, *settings)
    assert (figures(folder), figures(folder, "lr")) == (losses, rates)
    undo_end(folder, after=STEPS)  # killed before the first checkpoint of the longer run
    train(file, *settings)
    assert (figures(folder), figures(folder, "lr")) == (losses, rates)
    assert len(history(folder)) == 1


def test_a_run_out_of_patience_goes_on_with_more(shared: Path, tmp_path: Path):
    file = run_of(
        shared,
        tmp_path,
        train={"max_steps": 2 * STEPS},
        optimizer={"lr": 10.0},
        evaluation={"every": 1, "before": True, "patience": 2, "metric": "loss"},
    )
    train(file)
    folder = tmp_path / "run"
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped_early", 2)
    train(file, "--resume", "evaluation.patience=3")
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("stopped_early", 5)


def test_fewer_steps_than_are_done_end_the_run(file: Path, tmp_path: Path):
    train(file)
    undo_end(tmp_path / "run", after=3)
    train(file, "--resume", "train.max_steps=2")
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 3


def test_other_settings_are_refused_as_before(file: Path):
    train(file)
    done = tiny.command("train", file, "--resume", "train.max_steps=9", "seed=2")
    assert done.code == 2
    assert "seed: 0 -> 2" in done.stderr
    assert "max_steps" not in done.stderr


@pytest.mark.slow
def test_it_is_so_under_zero(shared: Path, tmp_path: Path):
    file = run_of(shared, tmp_path)
    for more in ((), ("--resume", f"train.max_steps={2 * STEPS}", "optimizer.lr=0.002")):
        done = tiny.forked("train", file, "distributed.strategy=zero2", *more, processes=2)
        assert done.code == 0, done.stderr[-3000:]
    rates = [peak * left / STEPS for peak in (0.001, 0.002) for left in range(STEPS, 0, -1)]
    assert figures(tmp_path / "run", "lr") == pytest.approx(rates)
    alone = run_of(shared, tmp_path / "alone")
    train(alone)
    train(alone, "--resume", f"train.max_steps={2 * STEPS}", "optimizer.lr=0.002")
    assert figures(tmp_path / "run") == pytest.approx(figures(tmp_path / "alone/run"), rel=1e-4)
