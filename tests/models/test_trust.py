"""Code that comes with a model runs where the user says so, never because a run folder or a model's folder does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import remote_code
import tiny
import torch
from safetensors.torch import load_file

from ftscale.config import load_config
from ftscale.config.load import write_config
from ftscale.plan import plan_run

INPUT = '{"text": "a warm and funny film"}\n'


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    (folder / "input.jsonl").write_text(INPUT)
    return folder


@pytest.fixture(scope="module")
def runs(shared: Path, work: Path) -> dict[str, Path]:
    """Finished runs of a model with code of its own, which their configuration trusts: all weights, and an adapter."""
    model = remote_code.own_model(shared / "weights/stories260K", work / "own", work / "ran-training")
    about = {"name": str(model), "trust_remote_code": True}
    changes = {"model": about, "optimizer": {"lr": 0.05}, "checkpoint": {"prove": "final"}}
    adapter = {"adapter": {"method": "lora", "r": 2}}
    return {name: trained(shared, work / name, **changes, **more) for name, more in (("full", {}), ("lora", adapter))}


def trained(shared: Path, work: Path, **changes: Any) -> Path:
    outcome = tiny.command("train", tiny.write_run(work, tiny.settings(shared, work, **changes)))
    assert outcome.code == 0, outcome.stderr
    return work / "run"


COMMANDS = {
    "predict": lambda run, work: ("predict", run, work / "input.jsonl", "--out", work / f"{run.parent.name}.jsonl"),
    "evaluate": lambda run, work: ("evaluate", run),
    "export": lambda run, work: ("export", run, work / f"exported-{run.parent.name}"),
}


def test_what_the_user_trusts_is_trained_and_proved(runs: dict[str, Path], work: Path):
    assert (work / "ran-training").exists()
    for run in runs.values():
        assert json.loads((run / "result.json").read_text())["status"] == "completed"


@pytest.mark.parametrize(
    ("kind", "command"), [("full", "predict"), ("full", "evaluate"), ("full", "export"), ("lora", "predict")]
)
def test_a_run_folders_own_trust_runs_no_code(runs: dict[str, Path], work: Path, kind: str, command: str):
    run, mark = runs[kind], work / f"ran-{kind}-{command}"
    for folder in code_of(run, work):
        remote_code.write_code(folder, mark)  # what ran in training is known to this process
    assert load_config(run / "config.yaml").model.trust_remote_code
    outcome = tiny.command(*COMMANDS[command](run, work))
    assert (outcome.code, mark.exists()) == (2, False), outcome.stderr
    assert "comes with its own modelling code" in outcome.stderr
    assert "add --trust-remote-code." in outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("kind", "command", "said"),
    [
        ("full", "predict", "--trust-remote-code"),
        ("full", "evaluate", "model.trust_remote_code=true"),
        ("lora", "export", "--trust-remote-code"),
    ],
)
def test_the_command_line_trusts(runs: dict[str, Path], work: Path, kind: str, command: str, said: str):
    run, mark = runs[kind], work / f"ran-{kind}-{command}-trusted"
    for folder in code_of(run, work):
        remote_code.write_code(folder, mark)
    outcome = tiny.command(*COMMANDS[command](run, work), said)
    assert (outcome.code, mark.exists()) == (0, True), outcome.stderr


@pytest.fixture
def native(shared: Path, work: Path, tmp_path: Path) -> Path:
    """run.yaml of a model of a known type that brings code along all the same."""
    llama = shared / "weights/stories260K"
    model = remote_code.own_model(llama, tmp_path / "native", tmp_path / "ran", model_type="llama")
    return tiny.write_run(
        tmp_path, tiny.settings(shared, tmp_path, model={"name": str(model), "trust_remote_code": True})
    )


def test_check_and_plan_go_without_code_and_say_so(native: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checked = tiny.command("check", native, "--json")
    assert checked.code == 0, checked.stdout
    report = json.loads(checked.stdout)
    assert report["facts"]["data"]["train"]["kept"] == 64
    assert any("check runs no code of a model; what is said here" in text for text in report["warnings"])
    assert plan_run(load_config(native), gpu="l4", compare=False).fits
    assert "a plan runs no code of a model" in caplog.text
    assert not (tmp_path / "ran").exists()


def test_a_run_whose_model_can_be_had_without_its_code_says_that_it_is_left_out(
    work: Path, shared: Path, tmp_path: Path
):
    run = trained(shared, tmp_path)
    config = load_config(run / "config.yaml")
    told = config.model_copy(update={"model": config.model.model_copy(update={"trust_remote_code": True})})
    write_config(told, run / "config.yaml")
    about = json.loads((run / "model/config.json").read_text())
    (run / "model/config.json").write_text(json.dumps({**about, "auto_map": {"AutoConfig": "own.OwnConfig"}}))
    remote_code.write_code(run / "model", tmp_path / "ran")
    outcome = tiny.command("predict", run, work / "input.jsonl")
    assert outcome.code == 0, outcome.stderr
    assert "without --trust-remote-code it is not run" in outcome.stderr
    assert not (tmp_path / "ran").exists()


def test_check_and_plan_say_what_they_cannot_look_at_without_code(shared: Path, tmp_path: Path):
    model = remote_code.own_model(shared / "weights/stories260K", tmp_path / "own", tmp_path / "ran")
    values = tiny.settings(shared, tmp_path, model={"name": str(model), "trust_remote_code": True})
    file = tiny.write_run(tmp_path, values)
    checked = tiny.command("check", file, "--json")
    assert checked.code == 0, checked.stdout
    assert "this one cannot be had without" in json.loads(checked.stdout)["warnings"][0]
    wrong = tiny.command("check", file, "optimizer.name=adamv", "data.train.0.columns.text=film")
    assert wrong.code == 2
    assert "trust_remote_code" not in wrong.stderr
    planned = tiny.command("plan", file, "--gpu", "l4")
    assert planned.code == 2
    assert "a plan runs no code of a model, and" in planned.stderr
    untrusted = tiny.command("check", file, "model.trust_remote_code=false")
    assert untrusted.code == 2
    assert "model.trust_remote_code = false, but" in untrusted.stderr
    assert not (tmp_path / "ran").exists()


def test_an_adapters_base_is_no_pickle_unless_the_command_line_allows_it(shared: Path, work: Path, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(shared / "weights/stories260K", base)
    run = trained(shared, tmp_path, model=str(base), adapter={"method": "lora", "r": 2})
    before = tiny.command("predict", run, work / "input.jsonl")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    for command in COMMANDS.values():
        refused = tiny.command(*command(run, work))
        assert refused.code == 2, refused.stderr
        assert "has no weights as safetensors; load it by transformers" in refused.stderr
    allowed = tiny.command("predict", run, work / "input.jsonl", "--allow-pickle")
    assert (allowed.code, allowed.stdout) == (0, before.stdout)


def code_of(run: Path, work: Path) -> list[Path]:
    """Where code of the run's model lies: with it, with the base's config, and with the base."""
    return [
        folder for folder in (run / "model", run / "model/base_config", work / "own") if (folder / "own.py").exists()
    ]
