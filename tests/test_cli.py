"""The commands as a user meets them: help, schema, every launcher, a signal and a resume, and what a run leaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny

import ftscale
from ftscale.config.load import config_schema, differences, load_config

SLURM = ("submit", "status", "logs", "cancel", "resubmit", "table")
COMMANDS = (
    "train",
    "launch",
    "evaluate",
    "predict",
    "export",
    "check",
    "plan",
    "checkpoints",
    "schema",
    "init",
    "doctor",
    "recipes",
)
COMMANDS += SLURM
LONG = 60  # steps of a run that is stopped on its way


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str):
    outcome = tiny.command(command, "--help")
    assert outcome.code == 0
    assert f"Example: ftscale {command}" in outcome.stdout


def test_help_of_all_commands_imports_nothing_heavy():
    program = f"""
import sys
from ftscale.cli import main
for command in {COMMANDS}:
    sys.argv = ["ftscale", command, "--help"]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, command
heavy = {{"torch", "transformers", "datasets", "numpy", "accelerate"}} & set(sys.modules)
assert not heavy, heavy
"""
    outcome = tiny.process("python", "-c", program)
    assert outcome.code == 0, outcome.stderr


def test_without_a_command_the_commands_are_shown():
    outcome = tiny.command()
    assert all(command in outcome.stdout for command in COMMANDS)


def test_the_version_is_printed_instead_of_a_command():
    outcome = tiny.command("--version")
    assert (outcome.code, outcome.stdout) == (0, f"ftscale {ftscale.__version__}\n")


def test_bash_completes_commands_and_options():
    program = """
eval "$(_FTSCALE_COMPLETE=source_bash ftscale)"
complete -p ftscale
COMP_WORDS=(ftscale che) COMP_CWORD=1; _ftscale_completion ftscale; echo "${COMPREPLY[@]}"
COMP_WORDS=(ftscale launch --pro) COMP_CWORD=2; _ftscale_completion ftscale; echo "${COMPREPLY[@]}"
"""
    outcome = tiny.process("bash", "-c", program)
    assert outcome.stdout.splitlines() == [
        "complete -o default -F _ftscale_completion ftscale",
        "checkpoints check",
        "--processes",
    ]


def test_schema_prints_the_json_schema():
    outcome = tiny.command("schema")
    printed = json.loads(outcome.stdout)
    assert printed == config_schema()
    assert printed["properties"]["optimizer"]
    assert printed["$defs"]["OptimizerConfig"]["properties"]["lr"]["description"] == "Peak learning rate."


def test_the_package_runs_as_a_module():
    outcome = tiny.process("python", "-m", "ftscale", "--help")
    assert outcome.code == 0
    assert "Fine-tune Hugging Face models" in outcome.stdout


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_start_is_lean_and_what_follows_collects_its_garbage(shared: Path, tmp_path: Path, command: str):
    captions = [{"path": str(shared / "data/translation/multi30k_de-en/val.en.gz"), "format": "text", "limit": 16}]
    changes = {"task": {"name": "causal_lm", "max_length": 64}, "data": {"train": captions, "eval": captions}}
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, **changes))
    if command == "evaluate":
        assert tiny.command("train", file).code == 0
    program = f"""
import gc, os, sys
from ftscale.__main__ import run
sys.argv = ["ftscale", "{command}", "{file if command == "train" else tmp_path / "run"}"]
try:
    run()
except SystemExit as stop:
    assert not stop.code, stop.code
assert gc.isenabled() and gc.get_freeze_count() > 100_000  # the libraries' objects stay, garbage of the work does not
assert not {{"evaluate", "torch._inductor.compile_fx"}} & sys.modules.keys()
assert "TORCHDYNAMO_DISABLE" not in os.environ  # a model's own code may compile
"""
    outcome = tiny.process("python", "-c", program)
    assert outcome.code == 0, outcome.stderr


# ---------------------------------------------------------------- what a run leaves


def test_a_run_leaves_what_is_documented(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path))
    assert tiny.command("train", file).code == 0
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "run.json",
        "data.json",
        "data_report.json",
        "metrics.jsonl",
        "rows",
        "checkpoints",
        "logs",
        "model",
        "result.json",
        ".lock.json",
    }
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == {"status", "steps", "metrics", "best", "duration_s", "model", "intervals"}
    assert (result["status"], result["steps"], result["model"]) == ("completed", 3, str(folder / "model"))
    run = json.loads((folder / "run.json").read_text())
    assert set(run) >= {"versions", "python", "host", "device", "world_size", "strategy", "git", "command", "started"}
    assert (run["world_size"], run["strategy"]) == (1, "single")
    assert run["command"][1:] == ["train", str(file)]
    lines = [line for line in tiny.metrics(folder) if line["kind"] != "event"]
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 1), ("train", 2), ("train", 3), ("eval", 3)]
    figures = {"loss", "grad_norm", "lr", "tokens", "targets", "rows_hash", "step_s", "tokens_per_s", "memory_bytes"}
    assert all(set(line) == {"kind", "step", "time_s", *figures} for line in lines[:3])
    assert [line["targets"] for line in lines[:3]] == [8, 8, 8]
    assert {name: lines[3][name] for name in result["metrics"]} == result["metrics"]


def test_the_resolved_config_is_a_runnable_config(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path))
    done = tiny.command("train", file, "seed=3", "--json")
    assert (done.code, json.loads(done.stdout)) == (0, json.loads((tmp_path / "run/result.json").read_text()))
    resolved, again = tmp_path / "run/config.yaml", tmp_path / "again"
    assert tiny.command("train", resolved, f"run_folder={again}").code == 0
    assert losses(again) == losses(tmp_path / "run")
    [difference] = differences(load_config(resolved), load_config(again / "config.yaml"))
    assert difference.startswith("run_folder")


def test_three_lines_of_python_train_and_again_with_another_config(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path))
    first = ftscale.train(ftscale.load_config(file))
    second = ftscale.train(ftscale.load_config(file, ["adapter.method=lora", f"run_folder={tmp_path / 'second'}"]))
    assert (first.status, first.steps, first.model) == ("completed", 3, str(tmp_path / "run/model"))
    assert set(first.metrics) >= {"loss", "accuracy", "f1_macro"}
    assert (tmp_path / "run/model/model.safetensors").is_file()
    assert (tmp_path / "second/model/adapter_config.json").is_file()
    assert second.metrics["loss"] != first.metrics["loss"]
    with pytest.raises(ftscale.UserError, match="already holds a run"):
        ftscale.train(ftscale.load_config(file))


# ---------------------------------------------------------------- launchers


@pytest.fixture(scope="module")
def alone(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 3 steps by one process; run.yaml lies beside the run."""
    work = tmp_path_factory.mktemp("alone")
    assert tiny.command("train", tiny.write_run(work, tiny.settings(shared, work))).code == 0
    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "strategy"),
    [
        needs.in_campaign(
            ("accelerate", "launch", "--config_file", "launch/accelerate/ddp.yaml", "--num_processes", "2"), "ddp"
        ),
        (("accelerate", "launch", "--config_file", "launch/accelerate/zero2.yaml", "--num_processes", "2"), "zero2"),
        (("torchrun", "--standalone", "--nproc_per_node", "2"), "ddp"),
    ],
    ids=["accelerate ddp", "accelerate zero2", "torchrun"],
)
def test_two_processes_of_a_launcher_do_the_same_steps(
    alone: Path, tmp_path: Path, launcher: tuple[str, ...], strategy: str
):
    arguments = ("-m", "ftscale", "train", alone / "run.yaml", f"run_folder={tmp_path / 'run'}")
    outcome = tiny.process(*launcher, *arguments)
    assert outcome.code == 0, outcome.stderr[-3000:]
    check_same_run(tmp_path / "run", alone / "run", world_size=2, strategy=strategy)


@pytest.mark.slow
def test_launch_starts_the_strategy_and_does_the_same_steps(alone: Path, tmp_path: Path):
    run = (alone / "run.yaml", f"run_folder={tmp_path / 'run'}")
    outcome = tiny.process("ftscale", "launch", *run, "--processes", 2, "--strategy", "zero1")
    assert (outcome.code, outcome.stdout) == (0, ""), outcome.stderr[-3000:]
    check_same_run(tmp_path / "run", alone / "run", world_size=2, strategy="zero1")
    assert outcome.stderr.count("rows read") == 2, "one line for each source, not one for each process"
    assert "completed after 3 steps" in outcome.stderr


def test_launch_of_one_process_needs_no_launcher(alone: Path, tmp_path: Path):
    outcome = tiny.command("launch", alone / "run.yaml", f"run_folder={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.stderr
    assert losses(tmp_path / "run") == losses(alone / "run")


# ---------------------------------------------------------------- signals


def long_run(shared: Path, work: Path) -> Path:
    """The file of a run that takes a while."""
    values = tiny.settings(shared, work, train={"max_steps": LONG}, checkpoint={"every": LONG, "prove": "never"})
    return tiny.write_run(work, values)


@pytest.fixture(scope="module")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the long run, which nobody stopped."""
    work = tmp_path_factory.mktemp("whole")
    assert tiny.command("train", long_run(shared, work)).code == 0
    return work / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        (["train"], signal.SIGTERM),
        (["launch", "--processes", "2"], signal.SIGTERM),
        needs.in_campaign(["launch", "--processes", "2"], signal.SIGUSR1),
        needs.in_campaign(["train"], signal.SIGHUP),
        needs.in_campaign(["launch", "--processes", "2"], signal.SIGHUP),
    ],
    ids=["train", "launch", "launch by SIGUSR1", "train by SIGHUP", "launch by SIGHUP"],
)
def test_a_signalled_run_ends_with_75_and_resumes_to_the_same_model(
    shared: Path, tmp_path: Path, whole: Path, arguments: list[str], number: signal.Signals
):
    file, folder = long_run(shared, tmp_path), tmp_path / "run"
    command, *options = arguments
    words = [str(tiny.BIN / "ftscale"), command, str(file), *options]
    with open(tmp_path / "log", "w") as log:
        program = subprocess.Popen(
            words, env={**os.environ, **tiny.environment()}, stdout=log, stderr=log, cwd=tiny.ROOT
        )
        metrics = folder / "metrics.jsonl"
        tiny.wait_until(lambda: metrics.is_file() and len(tiny.steps(folder)) >= 3, "steps", program=program)
        program.send_signal(number)
        code = program.wait()
    told = (tmp_path / "log").read_text()
    assert code == 75, told
    assert "Traceback" not in told
    again = told.splitlines()[-1].partition(" go on with it: ")[2]
    assert shlex.split(again) == ["ftscale", *words[1:], "--resume"]
    result = json.loads((folder / "result.json").read_text())
    stopped = result["steps"]
    assert (result["status"], 3 <= stopped < LONG) == ("preempted", True)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]
    assert not (folder / "model").exists()
    assert tiny.command("train", file, "--resume").code == 0
    assert [line["step"] for line in tiny.steps(folder)] == list(range(1, LONG + 1))
    assert losses(folder) == pytest.approx(losses(whole), rel=1e-4)
    resumed, uninterrupted = (json.loads((path / "result.json").read_text()) for path in (folder, whole))
    assert resumed["metrics"] == pytest.approx(uninterrupted["metrics"], rel=1e-4)
    finished = tiny.command("train", file, "--resume")
    assert (finished.code, f"is finished (completed, {LONG} steps); nothing to do" in finished.stderr) == (0, True)


@pytest.mark.campaign
def test_a_stop_of_accelerate_launch_tells_the_command_that_goes_on(shared: Path, tmp_path: Path):
    file, folder = long_run(shared, tmp_path), tmp_path / "run"
    options = ["--config_file", "launch/accelerate/ddp.yaml", "--num_processes", "2"]
    words = ["accelerate", "launch", *options, "-m", "ftscale", "train", str(file)]
    with open(tmp_path / "log", "w") as log:
        variables = {**os.environ, **tiny.environment()}
        program = subprocess.Popen(words, env=variables, stdout=log, stderr=log, cwd=tiny.ROOT)
        metrics = folder / "metrics.jsonl"
        tiny.wait_until(lambda: metrics.is_file() and len(tiny.steps(folder)) >= 3, "steps", program=program)
        program.send_signal(signal.SIGTERM)
        program.wait()
    [told] = [line for line in (tmp_path / "log").read_text().splitlines() if "go on with it" in line]
    again = shlex.split(told.partition("go on with it: ")[2])
    assert again == [*words, "--resume"]
    assert tiny.process(*again).code == 0
    assert [line["step"] for line in tiny.steps(folder)] == list(range(1, LONG + 1))


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in tiny.steps(folder)]


def check_same_run(folder: Path, other: Path, *, world_size: int, strategy: str) -> None:
    about: dict[str, Any] = json.loads((folder / "run.json").read_text())
    assert (about["world_size"], about["strategy"]) == (world_size, strategy)
    assert losses(folder) == pytest.approx(losses(other), rel=1e-4)
    norms = [[line["grad_norm"] for line in tiny.steps(path)] for path in (folder, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
