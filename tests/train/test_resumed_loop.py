"""A run that goes on from a checkpoint is the unbroken run, in everything that it computes and counts."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
import torch
from launching import forget_after
from safetensors.torch import load_file
from strategies import jobs

from ftscale.config import parse_config
from ftscale.run.folder import Result
from ftscale.run.train import train
from ftscale.tasks.batch import Terms
from ftscale.tasks.text_classification import TextClassification
from ftscale.train import loop
from ftscale.train.guard import NotFiniteError

HALF = 8
MEASURED = ("time_s", "blocked_s", "memory_bytes", "hash")  # what no two runs have alike, and hashes of lines with it


def run(config: dict[str, Any], folder: Path, *, resume: bool = False) -> Result:
    return train(parse_config({**config, "run_folder": str(folder)}, source="test"), resume=resume)


class Runs(NamedTuple):
    """An unbroken run and one that went on from its checkpoint of step HALF: folders and results."""

    whole: Path
    resumed: Path
    results: tuple[Result, Result]


@pytest.fixture(scope="module")
def runs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All that a run carries from step to step: dropout, a task that draws by Python and numpy, Adam, a schedule,
    the guard's window, evaluations, patience, time.

    Training pulls all predictions up to 5 and evaluation wants -5: step 0 stays the best, and each evaluation is bad.
    """
    work = tmp_path_factory.mktemp("runs")
    labels = dict.fromkeys(range(1, 81), 5.0) | {46: 1000.0}
    config = jobs.regression(shared, work, labels=labels, num_rows=80)
    (work / "eval.jsonl").write_text("".join(json.dumps({"text": f"row {n}", "label": -5.0}) + "\n" for n in range(4)))
    config["data"]["eval"] = str(work / "eval.jsonl")
    config["model"]["overrides"] = {"hidden_dropout_prob": 0.1}
    config |= {
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "train": {"max_steps": 20},
        "evaluation": {"every": 2, "before": True, "metric": "mse", "patience": 8, "keep_best": False},
        "checkpoint": {"every": HALF, "keep": 9, "prove": "never"},
        "guard": {"policy": "skip", "spike_z": 8.0, "window": 10},
    }
    with pytest.MonkeyPatch.context() as patch:
        clock = take_a_second_for_each_loss(patch)
        whole = run(config, work / "whole")
        forget_after(work / "whole", work / "resumed", step=HALF)
        clock.now += 1000.0
        resumed = run(config, work / "resumed", resume=True)
    return Runs(work / "whole", work / "resumed", (whole, resumed))


def take_a_second_for_each_loss(patch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The task draws from Python's and numpy's generators, and the loop's clock goes by its losses alone."""
    clock = SimpleNamespace(now=0.0)
    loss = TextClassification.loss

    def drawn(self: TextClassification, *arguments: Any) -> Terms:
        clock.now += 1.0
        factor = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
        return {name: term * factor for name, term in loss(self, *arguments).items()}

    patch.setattr(TextClassification, "loss", drawn)
    patch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def lines(folder: Path, *, kind: str) -> list[dict[str, Any]]:
    found = [line for line in jobs.lines(folder) if line["kind"] == kind]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in found]


def manifest(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / f"checkpoints/step-{step:08d}/manifest.json").read_text())


def test_the_unbroken_run_went_as_it_was_meant_to(runs: Runs):
    result = runs.results[0]
    # eight evaluations that are not better than the one before training, at steps 2, 4, ..., 16
    assert (result.status, result.steps) == ("stopped_early", 16)
    assert result.best is not None
    assert (result.best["step"], result.best["metric"]) == (0, "mse")
    assert [line["step"] for line in lines(runs.whole, kind="eval")] == list(range(0, 17, 2))
    # the row with the label 1000 is one of the 12th step's four, counted from 1
    bad = [line for line in lines(runs.whole, kind="event") if line["event"] == "bad_batch"]
    assert [line["step"] for line in bad] == [12]
    # two micro-batches a step, and those of step 12 once more, to find the culprit
    assert result.duration_s == 2 * 16 + 2


def test_steps_of_a_resumed_run_are_those_of_the_unbroken_one(runs: Runs):
    """Rows, losses, gradients, rates, tokens and their speed; each step stands in the file once."""
    steps = lines(runs.resumed, kind="train")
    assert [line["step"] for line in steps] == list(range(1, 17))
    assert steps == lines(runs.whole, kind="train")


def test_evaluations_and_events_of_a_resumed_run_are_those_of_the_unbroken_one(runs: Runs):
    assert lines(runs.resumed, kind="eval") == lines(runs.whole, kind="eval")
    assert lines(runs.resumed, kind="event") == lines(runs.whole, kind="event")


def test_a_resumed_run_ends_as_the_unbroken_one(runs: Runs):
    whole, resumed = runs.results
    assert (resumed.status, resumed.steps, resumed.duration_s) == (whole.status, whole.steps, whole.duration_s)
    assert (resumed.metrics, resumed.best) == (whole.metrics, whole.best)
    weights, others = (load_file(folder / "model/model.safetensors") for folder in (runs.resumed, runs.whole))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_what_a_resumed_run_stores_for_the_next_resume_is_what_the_unbroken_one_stores(runs: Runs):
    progress = manifest(runs.resumed, 16)["progress"]
    assert progress == manifest(runs.whole, 16)["progress"]
    assert progress["loop"]["tokens"] == sum(line["tokens"] for line in lines(runs.whole, kind="train"))
    assert progress["loop"]["targets"] == 4 * 16


def test_bad_batches_in_a_row_are_counted_across_a_resume(shared: Path, tmp_path: Path):
    """Rows 13 to 40 are bad: steps 4, 5 and 6; the newest checkpoint is that of step 4."""
    config = jobs.regression(shared, tmp_path, labels=dict.fromkeys(range(13, 41), 1e30))
    config["guard"] = {"policy": "skip", "limit": 2}
    said = "optimizer step 6: the loss is not finite, 3 bad batches in a row"
    with pytest.raises(NotFiniteError, match=said):
        run(config, tmp_path / "run")
    with pytest.raises(NotFiniteError, match=said):
        run(config, tmp_path / "run", resume=True)


def test_a_resumed_stream_goes_on_behind_the_rows_that_it_has_read(shared: Path, tmp_path: Path):
    config = jobs.regression(shared, tmp_path, labels={})
    config["data"] |= {"streaming": True, "shuffle": True, "shuffle_buffer": 8}
    config["train"] = {"max_steps": 4}
    run(config, tmp_path / "whole")
    forget_after(tmp_path / "whole", tmp_path / "half", step=2)
    run(config, tmp_path / "half", resume=True)
    expected = lines(tmp_path / "whole", kind="train")
    assert len({line["rows_hash"] for line in expected}) == 4, "other rows at each step"
    shown = [(line["step"], line["rows_hash"], line["loss"]) for line in lines(tmp_path / "half", kind="train")]
    assert shown == [(line["step"], line["rows_hash"], line["loss"]) for line in expected]


def test_the_lines_before_a_checkpoint_are_on_the_disk_before_it_has_its_name(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk that is lost from under a run keeps what was synced: a checkpoint without its steps' lines loses them."""
    synced, told = [b""], dict[int, list[int]]()
    fsync, rename = os.fsync, os.rename

    def note_sync(file: Any) -> None:
        fsync(file)
        path = Path(os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}"))
        if path.name == "metrics.jsonl":
            synced[0] = path.read_bytes()

    def note_name(old: Any, new: Any) -> None:
        if Path(new).name.startswith("step-"):
            lines = map(json.loads, synced[0].splitlines())
            told[int(Path(new).name[5:])] = [line["step"] for line in lines if line["kind"] == "train"]
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_name)
    train(parse_config(tiny.settings(shared, tmp_path, checkpoint={"every": 1, "prove": "never"}), source="test"))
    assert told == {1: [1], 2: [1, 2], 3: [1, 2, 3]}
