"""What happens to a run when something goes wrong in it: bad batches, requests to stop, full disks, a second run."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import forget_after
from safetensors.torch import load_file, save_file
from strategies import jobs

import ftscale.run.folder
from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.run.folder import Result, locked
from ftscale.run.train import train
from ftscale.train.guard import NotFiniteError
from ftscale.train.manifest import complete_checkpoints
from ftscale.train.stop_request import StopRequest


def run(config: dict[str, Any], folder: Path, *, resume: bool = False, stop: StopRequest | None = None) -> Result:
    """Train in this process, into the folder."""
    parsed = parse_config({**config, "run_folder": str(folder)}, source="test")
    return train(parsed, resume=resume, stop_request=stop)


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in jobs.lines(folder) if line.get("event") == name]


def same_weights(one: Path, other: Path) -> bool:
    weights, others = (load_file(next((folder / "model").glob("*model.safetensors"))) for folder in (one, other))
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


# ---------------------------------------------------------------- bad batches


@pytest.fixture
def regression(shared: Path, tmp_path: Path) -> dict[str, Any]:
    """Rows in their order, 4 a step; the squared error of row 18 is more than float32 holds."""
    return jobs.regression(shared, tmp_path, labels={18: 1e30})


def test_a_bad_batch_is_left_out_and_named(regression: dict[str, Any], tmp_path: Path):
    assert run(regression | {"guard": {"policy": "skip"}}, tmp_path / "run").status == "completed"
    [event] = events(tmp_path / "run", "bad_batch")
    assert (event["step"], event["what"], event["action"]) == (5, "the loss is not finite", "skip")
    [culprit] = event["culprits"]
    assert (culprit["rank"], culprit["module"]) == (0, "the loss alone")
    assert "rows.jsonl:18" in " ".join(culprit["rows"])
    losses = {line["step"]: float(line["loss"]) for line in jobs.train_lines(tmp_path / "run")}
    assert [step for step, loss in losses.items() if not math.isfinite(loss)] == [5]
    weights = [torch.load(item.folder / "state.pt")["weights"] for item in complete_checkpoints(checkpoints(tmp_path))]
    assert len(weights) == 4
    assert all(torch.isfinite(value).all() for state in weights for value in state.values())


def test_nothing_of_a_left_out_batch_is_applied(regression: dict[str, Any], tmp_path: Path):
    regression |= {"checkpoint": {"every": 1, "keep": 9, "prove": "never"}, "guard": {"policy": "skip"}}
    run(regression, tmp_path / "run")
    before, after = (torch.load(item.folder / "state.pt") for item in complete_checkpoints(checkpoints(tmp_path))[3:5])
    assert all(torch.equal(before["weights"][name], after["weights"][name]) for name in before["weights"])
    states = [state["optimizer"]["state"] for state in (before, after)]
    assert jobs.tensors(states[0]) != []
    assert all(torch.equal(*pair) for pair in zip(jobs.tensors(states[0]), jobs.tensors(states[1]), strict=True))


def test_rewinding_goes_back_to_the_checkpoint_and_on_behind_the_batch(regression: dict[str, Any], tmp_path: Path):
    regression |= {"checkpoint": {"every": 3, "prove": "never"}, "schedule": {"name": "constant"}}
    assert run(regression | {"guard": {"policy": "rewind"}}, tmp_path / "run").status == "completed"
    [event] = events(tmp_path / "run", "rewound")
    assert (event["step"], event["to"]) == (5, 3)
    lines = jobs.train_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    # as if the batches from the checkpoint to the bad one were not there
    rows = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:12] + rows[20:]))
    run(regression | {"train": {"max_steps": 6}}, tmp_path / "without")
    assert [line["loss"] for line in lines[5:]] == jobs.losses(tmp_path / "without")[3:]


def test_rewinding_without_a_checkpoint_stops(regression: dict[str, Any], tmp_path: Path):
    regression["checkpoint"] = {"every": 9, "prove": "never"}
    with pytest.raises(NotFiniteError, match="optimizer step 5: the loss is not finite; nothing of it was applied"):
        run(regression | {"guard": {"policy": "rewind"}}, tmp_path / "run")
    assert jobs.result(tmp_path / "run")["status"] == "failed"


def test_too_many_bad_batches_in_a_row_stop_the_run(shared: Path, tmp_path: Path):
    regression = jobs.regression(shared, tmp_path, labels=dict.fromkeys(range(13, 41), 1e30))
    with pytest.raises(NotFiniteError, match="optimizer step 6: the loss is not finite, 3 bad batches in a row"):
        run(regression | {"guard": {"policy": "skip", "limit": 2}}, tmp_path / "run")
    assert [event["action"] for event in events(tmp_path / "run", "bad_batch")] == ["skip", "skip", "stop"]


def test_a_loss_spike_is_left_out(shared: Path, tmp_path: Path):
    labels = dict.fromkeys(range(1, 81), 1.0) | {58: 1000.0}
    regression = jobs.regression(shared, tmp_path, labels=labels, num_rows=80)
    regression |= {"train": {"max_steps": 20}, "guard": {"policy": "skip", "spike_z": 8.0, "window": 10}}
    assert run(regression, tmp_path / "run").status == "completed"
    [event] = events(tmp_path / "run", "bad_batch")
    assert event["step"] == 15
    assert "deviations above its mean" in event["what"]


def test_the_first_module_that_is_not_finite_is_named(shared: Path, tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(shared / "weights/stories260K", model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = math.inf
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFiniteError, match=r"rank 0: model\.model\.layers\.2\.mlp\.up_proj, rows .*train\.en\.gz:"):
        run(jobs.captions(shared, tmp_path, model={"name": str(model)}), tmp_path / "run")


def checkpoints(work: Path) -> Path:
    return work / "run/checkpoints"


# ---------------------------------------------------------------- requests to stop


class StopAfter(StopRequest):
    """Asks at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        if self.looks <= 0:
            self.reason = "test"
        return self.reason is not None


@pytest.fixture(scope="module")
def phases(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run that evaluates, generates, chooses its best weights and scores test rows; and its uninterrupted folder."""
    work = tmp_path_factory.mktemp("phases")
    config = jobs.answers(shared, work)
    config["data"]["test"] = config["data"]["eval"]
    config |= {
        "batch": {"global_size": 4},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"max_steps": 4},
        "evaluation": {"every": 2, "before": True, "micro_size": 4},
        "checkpoint": {"every": 3, "prove": "never"},
    }
    run(config, work / "whole")
    return config, work / "whole"


# before the loop, evaluation of step 0 in 4 batches, a step, ..., the evaluations of steps 2 and 4, the test rows
@pytest.mark.parametrize("looks", range(1, 14))
def test_a_run_asked_to_stop_anywhere_resumes_to_the_same_end(
    phases: tuple[dict[str, Any], Path], tmp_path: Path, looks: int
):
    config, whole = phases
    first = run(config, tmp_path / "run", stop=StopAfter(looks))
    assert first.status == "preempted"
    assert not (tmp_path / "run/model").exists()
    assert complete_checkpoints(checkpoints(tmp_path))[-1].step == first.steps
    result = run(config, tmp_path / "run", resume=True)
    assert (result.status, result.steps) == ("completed", 4)
    expected = jobs.result(whole)
    assert (result.metrics, result.best) == (expected["metrics"], expected["best"])
    assert same_weights(tmp_path / "run", whole)
    lines = [[line for line in jobs.lines(folder) if line["kind"] != "event"] for folder in (tmp_path / "run", whole)]
    shown = [[(line["kind"], line["step"], line.get("rows_hash"), line.get("loss")) for line in part] for part in lines]
    assert shown[0] == shown[1]


def test_adalora_goes_on_with_the_importance_it_has_learned(shared: Path, tmp_path: Path):
    adapter = {"method": "adalora", "init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2, "deltaT": 1}
    config = jobs.captions(shared, tmp_path, adapter={**adapter, "target_modules": "all-linear"})
    config |= {"train": {"max_steps": 9}, "evaluation": {}}
    run(config, tmp_path / "whole")
    forget_after(tmp_path / "whole", tmp_path / "half", step=3)
    run(config, tmp_path / "half", resume=True)
    assert jobs.losses(tmp_path / "half") == jobs.losses(tmp_path / "whole")
    assert same_weights(tmp_path / "half", tmp_path / "whole")


# ---------------------------------------------------------------- disks, second runs, empty adapters


def test_a_disk_without_room_for_the_checkpoints_is_noticed_before_training(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("ftscale.run.disk.shutil.disk_usage", lambda path: usage(2**30, 2**30 - 2**22, 2**22))
    with pytest.raises(UserError, match=r"need about \d+ MiB, and 4 MiB are free there; free space, lower checkpoint"):
        run(jobs.captions(shared, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("job", "sections"),
    [
        (jobs.captions, {}),
        (jobs.captions, jobs.lora()),
        (jobs.reviews, {"optimizer": {"name": "adamw_8bit"}}),
        (jobs.reviews, {"train": {"max_steps": 2, "precision": "bf16"}}),
    ],
    ids=["full", "lora", "8-bit", "bf16"],
)
def test_the_forecast_of_a_checkpoint_is_near_its_size(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: Any, sections: dict[str, Any]
):
    import ftscale.run.disk

    forecast: list[tuple[int, int]] = []
    known = ftscale.run.disk._forecast_bytes
    monkeypatch.setattr(ftscale.run.disk, "_forecast_bytes", lambda *a: forecast.append(known(*a)) or forecast[-1])
    run(job(shared, tmp_path, **sections), tmp_path / "run")
    [(checkpoint, model)] = forecast
    assert complete_checkpoints(checkpoints(tmp_path))[-1].size_bytes == pytest.approx(checkpoint, rel=0.15, abs=1e5)
    saved = next((tmp_path / "run/model").glob("*model.safetensors")).stat().st_size
    assert saved == pytest.approx(model, rel=0.15, abs=1e5)


def test_who_reads_while_a_file_of_the_run_is_written_reads_the_whole_old_one(tmp_path: Path):
    path = tmp_path / "run.json"
    ftscale.run.folder.write_json(path, {"run_id": "old"})
    with path.open() as reader:
        ftscale.run.folder.write_json(path, {"run_id": "new"})
        assert json.load(reader)["run_id"] == "old"
    assert json.loads(path.read_text())["run_id"] == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["run.json"]


def test_a_second_run_on_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ftscale.run.folder, "LOCK_WAIT_S", 0.2)
    with locked(tmp_path / "run"):
        said = r"is in use by process \d+ on \S+ since .*; wait for it, stop it, or name another folder"
        with pytest.raises(UserError, match=said), locked(tmp_path / "run"):
            pass
    assert not (tmp_path / "run").exists(), "nothing was begun in it"
    with locked(tmp_path / "run"):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "run").mkdir()
    held = {"process": 1, "host": "gone", "since": "yesterday"}
    (tmp_path / "run/lock.json").write_text(json.dumps(held))
    ftscale.run.folder.log.propagate = True
    with caplog.at_level("INFO"), locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run/lock.json").read_text())["host"] != "gone"
    assert "taking over the lock of process 1 on gone since yesterday" in caplog.text


def test_an_adapter_that_changes_nothing_is_an_error(shared: Path, tmp_path: Path):
    config = jobs.captions(shared, tmp_path, **jobs.lora())
    config["optimizer"] = {"name": "sgd", "lr": 1e-30}
    with pytest.raises(UserError, match="is empty or changes nothing: the base model alone gives the same outputs"):
        run(config, tmp_path / "run")


def test_a_saved_model_that_answers_otherwise_is_an_error(shared: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    from ftscale.models.prove import prove_saved

    model = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K").eval()
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        logits = model(**inputs).logits
    about: dict[str, Any] = {
        "auto_class": "AutoModelForCausalLM",
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "quantized": False,
    }
    assert prove_saved(shared / "weights/stories260K", inputs, {"logits": logits}, **about).largest_difference < 1e-5
    with pytest.raises(RuntimeError, match="answers otherwise than the trained one"):
        prove_saved(shared / "weights/stories260K", inputs, {"logits": logits * 1.01}, **about)
    with pytest.raises(RuntimeError, match="does not load in a fresh process"):
        prove_saved(tmp_path, inputs, {"logits": logits}, **about)
