"""The real packages, without a network: what stands in their stores after a run, its resumption and a failed run."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny

from ftscale.train.tracker_kinds import option_names

pytest.importorskip("wandb")
TRACKERS = "[tensorboard, wandb, mlflow, trackio]"
STEPS, EVERY, KILLED_AT = 5, 2, 2


@pytest.fixture(scope="module")
def work(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was killed after step 2 and has gone on, and one that has failed, both told to all four trackers."""
    import wandb

    work = tmp_path_factory.mktemp("work")
    own = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(work / "trackio"), "WANDB_SILENT": "true"}
    with patch.dict(os.environ, own):
        options = [
            f"report={TRACKERS}",
            "report.tags=[tried]",
            f"report.options={{mlflow: {{tracking_uri: 'file:{work}/mlruns'}}, trackio: {{auto_log_cpu: false}}}}",
        ]
        values = {"train": {"max_steps": STEPS, "log_every": EVERY}, "checkpoint": {"every": 1, "keep": 9}}
        settings = tiny.settings(shared, work, **values, evaluation={"every": KILLED_AT})
        settings["data"]["test"] = settings["data"]["eval"]
        file = tiny.write_run(work, settings)
        _train(file, *options, code=0)
        _undo_end(work / "run", after=KILLED_AT)
        _train(file, *options, "--resume", code=0)
        _train(file, *options, f"run_folder={work}/bad", "optimizer.lr=1e38", code=1)
        yield work
    wandb.teardown()


def _train(file: Path, *options: str, code: int) -> None:
    done = tiny.command("train", file, *options)
    assert (done.code, done.stdout) == (code, ""), done.stderr
    assert "report:" not in done.stderr


def _undo_end(folder: Path, *, after: int) -> None:
    """The run as a kill after the checkpoint of that step would have left it."""
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > after:
            shutil.rmtree(checkpoint)


def _losses(work: Path) -> dict[int, float]:
    """By metrics.jsonl, of the steps that trackers are told of."""
    every = (1, *range(EVERY, STEPS, EVERY), STEPS)
    return {line["step"]: line["loss"] for line in tiny.steps(work / "run") if line["step"] in every}


def _result(work: Path) -> dict[str, Any]:
    return json.loads((work / "run/result.json").read_text())


def test_tensorboard_shows_each_step_once(work: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(work / "run/trackers"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(_losses(work))
    assert [event.step for event in events.Scalars("train/loss")] == sorted(_losses(work))
    assert [event.step for event in events.Scalars("eval/loss")] == [2, 4, 5]
    [scores] = events.Scalars("test/accuracy")
    assert (scores.step, scores.value) == (STEPS, pytest.approx(_result(work)["metrics"]["test/accuracy"]))
    assert b"optimizer.lr: 0.001" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow_has_one_run_that_was_gone_on_with_and_one_that_failed(work: Path):
    from mlflow import MlflowClient

    with patch.dict(os.environ, {"MLFLOW_ALLOW_FILE_STORE": "true"}):
        client = MlflowClient(f"file:{work}/mlruns")
        experiment = client.get_experiment_by_name("ftscale")
        found = client.search_runs([experiment.experiment_id])
        assert sorted((run.info.run_name, run.info.status) for run in found) == [("bad", "FAILED"), ("run", "FINISHED")]
        runs = {run.info.run_name: run for run in found}
        run = runs["run"]
        told = client.get_metric_history(run.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in told} == _losses(work)
    assert run.data.metrics["test/accuracy"] == _result(work)["metrics"]["test/accuracy"]
    assert (run.data.params["optimizer.lr"], run.data.params["strategy"]) == ("0.001", "single")
    assert run.data.tags["tried"] == "true"


def test_wandb_has_the_same_id_at_both_starts_and_the_exit_code(work: Path):
    first, second = (_records(file) for file in sorted((work / "run").rglob("*.wandb")))
    [failed] = (_records(file) for file in (work / "bad").rglob("*.wandb"))
    assert first["id"] == second["id"] != failed["id"]
    assert (first["name"], first["project"], first["tags"]) == ("run", "ftscale", ["tried"])
    assert (first["exit"], second["exit"], failed["exit"]) == (0, 0, 1)
    assert first["config"]["optimizer.lr"] == 0.001
    steps = {
        line["step"]: line["train/loss"] for start in (first, second) for line in start["lines"] if "train/loss" in line
    }
    assert steps == _losses(work)
    assert second["lines"][-1]["test/accuracy"] == _result(work)["metrics"]["test/accuracy"]


def _records(file: Path) -> dict[str, Any]:
    """What a .wandb file of an offline run says."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Any] = {"lines": [], "config": {}}
    for data in _pieces(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found |= {"id": run.run_id, "name": run.display_name, "project": run.project, "tags": list(run.tags)}
        elif kind == "config":
            found["config"] |= _items(record.config.update)
        elif kind == "history":
            found["lines"].append(_items(record.history.item))
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _pieces(content: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it: blocks of 32 KiB, pieces with checksum, length and kind."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole, or its last piece
            yield record
            record = b""


def test_trackio_goes_on_with_the_run_of_the_same_name(work: Path):
    with sqlite3.connect(work / "trackio/ftscale.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    names = {name for name, _, _ in rows}
    [name] = [name for name in names if name.startswith("run-")]
    assert len(names) <= 2
    told = {step: json.loads(metrics) for run, step, metrics in rows if run == name and b"train/loss" in metrics}
    assert {step: metrics["train/loss"] for step, metrics in told.items()} == _losses(work)


def test_options_are_what_each_library_takes():
    assert {"mode", "entity", "dir", "settings"} <= (option_names("wandb") or set())
    assert {"space_id", "auto_log_gpu"} <= (option_names("trackio") or set())
    assert {"tracking_uri", "tags", "description"} == option_names("mlflow")
    assert "flush_secs" in (option_names("tensorboard") or set())
    assert option_names("aim") is None
