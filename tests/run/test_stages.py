"""A run of several stages is so many runs, each with the model of the one before: at once, stopped, killed, resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launching
import needs
import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from ftscale.base.errors import UserError
from ftscale.checks.report import check_run
from ftscale.checks.show import lines
from ftscale.cluster.records import checkpoint_step
from ftscale.config import parse_config
from ftscale.config.stages import stages_of
from ftscale.plan import plan_run
from ftscale.plan.report import apply_choice, as_json_text, summary
from ftscale.run.folder import current_folder, final_folder
from ftscale.run.train import train

WORKER = Path(__file__).with_name("stages_worker.py")
STEPS = 4
HEAD = {"trainable": {"scope": "head"}, "optimizer": {"lr": 1e-2}}
ALL = {"schedule": {"name": "constant"}}
STAGES = [{"name": "head", **HEAD}, {"name": "all", **ALL}]
SEEN = {  # of a run that is stopped there: the steps done and its stages
    ("step", 1): [2, ["1-head"]],  # a stop is agreed upon in the step after
    ("step", STEPS): [STEPS, ["1-head"]],  # before its model was saved
    ("save", STEPS): [STEPS, ["1-head"]],  # when it was
    ("step", STEPS + 1): [STEPS + 2, ["1-head", "2-all"]],
    ("step", 2 * STEPS): [2 * STEPS, ["1-head", "2-all"]],
}
STOPS = list(SEEN) if needs.ALL else [("step", 1), ("save", STEPS), ("step", STEPS + 1)]
WAYS = {"single": 1, "ddp": 2, "zero2": 2}


@dataclass
class Runs:
    """Under one strategy: two runs by hand, a run of two stages, and one that is stopped again and again."""

    hand: tuple[Path, Path]
    staged: Path
    stopped: Path


def settings(shared: Path, work: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A run of STEPS steps in the folder `name`."""
    return {**tiny.settings(shared, work, train={"max_steps": STEPS}), "run_folder": str(work / name), **changes}


@pytest.fixture(scope="module", params=[needs.in_campaign("single"), needs.in_campaign("ddp"), "zero2"])
def runs(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    strategy = request.param
    work = tmp_path_factory.mktemp(strategy)
    common = {"distributed": {"strategy": strategy}}
    first, second = work / "first", work / "second"
    jobs = [
        (settings(shared, work, "first", **common, **HEAD), []),
        (settings(shared, work, "second", **common, **ALL, model=str(first / "model")), []),
        (settings(shared, work, "staged", **common, stages=STAGES), []),
        (settings(shared, work, "stopped", **common, stages=STAGES), STOPS),
    ]
    listed = [{"config": config, "stop_at": stop_at} for config, stop_at in jobs]
    launching.launch(WORKER, listed, processes=WAYS[strategy], work=work)
    return Runs((first, second), work / "staged", work / "stopped")


def stages(folder: Path) -> tuple[Path, Path]:
    return folder / "stages/1-head", folder / "stages/2-all"


def figures(folder: Path) -> list[tuple[Any, ...]]:
    """What each step came to."""
    return [
        tuple(line[name] for name in ("step", "loss", "grad_norm", "lr", "rows_hash")) for line in tiny.steps(folder)
    ]


def scores(folder: Path) -> list[dict[str, Any]]:
    left_out = ("time_s",)
    lines = [line for line in tiny.metrics(folder) if line["kind"] == "eval"]
    return [{name: value for name, value in line.items() if name not in left_out} for line in lines]


def check_same(one: Path, other: Path) -> None:
    assert figures(one) == figures(other)
    assert len(figures(one)) == STEPS
    assert scores(one) == scores(other)
    weights, others = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def result(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in found.items() if name not in ("duration_s", "model")}


def test_two_stages_are_two_runs(runs: Runs):
    for stage, by_hand in zip(stages(runs.staged), runs.hand, strict=True):
        check_same(stage, by_hand)
        assert result(stage) == result(by_hand)
    assert result(runs.staged) == {**result(runs.hand[1]), "steps": 2 * STEPS}
    weights = [load_file(folder / "model/model.safetensors") for folder in stages(runs.staged)]
    assert not torch.equal(weights[0]["model.norm.weight"], weights[1]["model.norm.weight"])


def test_stopped_in_each_stage_and_between_them_it_ends_alike(runs: Runs):
    for stage, whole in zip(stages(runs.stopped), stages(runs.staged), strict=True):
        check_same(stage, whole)
    assert result(runs.stopped) == result(runs.staged)
    seen = json.loads(runs.stopped.with_name("stopped-stopped.json").read_text())
    assert seen == [["preempted", *SEEN[stop]] for stop in STOPS]


def test_the_folder_of_the_whole_holds_what_commands_look_for(runs: Runs, shared: Path, tmp_path: Path):
    folder = runs.staged
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == ["config.yaml", "model", "result.json", "run.json", "stages"]
    assert json.loads((folder / "run.json").read_text())["stages"] == ["1-head", "2-all"]
    assert (folder / "model").resolve() == (folder / "stages/2-all/model").resolve()
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved, symlinks=True)
    file = tmp_path / "new.csv"
    file.write_text("text\na fine film\na dull one\n")
    answers = [tiny.command("predict", place, file).stdout for place in (moved, runs.hand[1])]
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) == 2
    listed = tiny.command("checkpoints", moved).stdout.splitlines()
    assert [line for line in listed if line.startswith("stage")] == ["stage 1-head", "stage 2-all"]
    assert tiny.command("export", moved, tmp_path / "out").code == 0
    assert tiny.command("evaluate", moved).code == 0


# ---------------------------------------------------------------- in one process


def one_run(shared: Path, work: Path) -> dict[str, Any]:
    """Two stages with a checkpoint after each step."""
    return settings(shared, work, "run", stages=STAGES, checkpoint={"every": 1, "keep": 9, "prove": "never"})


@pytest.fixture(scope="module")
def whole(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("whole")
    config = one_run(shared, work)
    assert train(parse_config(config, source="test")).status == "completed"
    return work


@pytest.mark.parametrize("moment", ["the first stage", "between", "the second stage", "the end"])
def test_a_run_that_was_killed_goes_on_in_its_stage_also_elsewhere(
    shared: Path, whole: Path, tmp_path: Path, moment: str
):
    folder = tmp_path / "moved"
    shutil.copytree(whole / "run", folder, symlinks=True)
    (folder / "result.json").unlink()
    (folder / "model").unlink()
    if moment != "the end":
        shutil.rmtree(stages(folder)[1])
    if moment == "the first stage":
        shutil.rmtree(stages(folder)[0])
        launching.forget_after(stages(whole / "run")[0], stages(folder)[0], step=2)
    if moment == "the second stage":
        launching.forget_after(stages(whole / "run")[1], stages(folder)[1], step=1)
    before = tiny.contents(stages(folder)[0])
    config = {**one_run(shared, whole), "run_folder": str(folder)}
    assert train(parse_config(config, source="test"), resume=True).status == "completed"
    for stage, other in zip(stages(folder), stages(whole / "run"), strict=True):
        check_same(stage, other)
    assert result(folder) == result(whole / "run")
    if moment != "the first stage":
        assert tiny.contents(stages(folder)[0]) == before  # what has ended is not touched


def test_a_finished_run_is_refused_replaced_and_cannot_change(shared: Path, whole: Path):
    file = tiny.write_run(whole, one_run(shared, whole))
    assert "already holds a run" in tiny.command("train", file).stderr
    changed = tiny.command("train", file, "--resume", "stages[1].optimizer.lr=1e-9")
    assert changed.code == 2
    assert "stages.1.optimizer" in changed.stderr
    again = tiny.command("train", file, "--resume", "stages[1].checkpoint.keep=3")
    assert again.code == 0, again.stderr
    before = tiny.contents(whole / "run/stages/1-head/model")
    other = tiny.command("train", file, "--overwrite", "stages[0].name=top", "stages[1].optimizer.lr=1e-9")
    assert other.code == 0, other.stderr
    assert sorted(path.name for path in (whole / "run/stages").iterdir()) == ["1-top", "2-all"]
    after = tiny.contents(whole / "run/stages/1-top/model")
    name = "model.safetensors"
    assert before[name][1] == after[name][1]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": {"name": "nosuch"}}, "stage 2-all: optimizer.name = 'nosuch' is not known"),
        ({"optimizer": {"lr": -1}}, "stage 2-all: optimizer.lr = -1 must be greater than 0"),
        ({"data": {"train": "nowhere.csv"}}, "nowhere.csv"),
        ({"schedule": {"name": "nosuch"}}, "stage 2-all: schedule.name"),
        ({"evaluation": {"metric": "nosuch"}}, "stage 2-all: evaluation.metric"),
        ({"model": {"name": "other"}}, "stages[1].model.name is not for a later stage"),
        ({"run_folder": "elsewhere"}, "stages[1].run_folder is not for a stage"),
    ],
)
def test_a_mistake_in_the_second_stage_is_found_before_the_first(
    shared: Path, tmp_path: Path, change: dict[str, Any], said: str
):
    values = settings(shared, tmp_path, "run", stages=[STAGES[0], {"name": "all", **change}])
    file = tiny.write_run(tmp_path, values)
    outcome = tiny.command("train", file)
    assert outcome.code == 2, outcome.stderr
    assert said in outcome.stderr
    assert outcome.stderr.count("error:") == 1
    assert not (tmp_path / "run").exists()
    assert said in tiny.command("check", file).stderr + tiny.command("check", file).stdout


def test_a_row_that_only_preparing_meets_is_found_before_the_first_stage(shared: Path, tmp_path: Path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "good,1\nbad,0\n" * 9 + "neither,\n")
    values = settings(shared, tmp_path, "run")
    values["stages"] = [{}, {"data": {"train": str(rows), "eval": []}}]
    outcome = tiny.command("train", tiny.write_run(tmp_path, values))
    assert outcome.code == 2, outcome.stderr
    assert "error: stage 2: " in outcome.stderr
    assert "label = '' must be a class" in outcome.stderr
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- adapters


def test_an_adapter_is_merged_for_the_next_stage(shared: Path, tmp_path: Path):
    adapter = {"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    values = settings(shared, tmp_path, "run", stages=[{"adapter": adapter}, {"name": "whole"}])
    done = train(parse_config(values, source="test"))
    assert done.status == "completed"
    first = tmp_path / "run/stages/1"
    base = AutoModelForSequenceClassification.from_pretrained(shared / "weights/stories260K", num_labels=2)
    merged = PeftModel.from_pretrained(base, first / "model").merge_and_unload().state_dict()
    for name, weight in load_file(first / "merged/model.safetensors").items():
        torch.testing.assert_close(weight, merged[name], msg=name)
    by_hand = settings(shared, tmp_path, "second", model=str(first / "merged"))
    train(parse_config(by_hand, source="test"))
    check_same(tmp_path / "run/stages/2-whole", tmp_path / "second")
    assert (tmp_path / "run/model/model.safetensors").is_file()
    assert done.model == str(tmp_path / "run/model")


@pytest.mark.campaign
def test_an_adapter_trained_in_shards_is_merged_by_one_rank(shared: Path, tmp_path: Path):
    adapter = {"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}
    values = settings(shared, tmp_path, "run", stages=[{"adapter": adapter}, {}], distributed={"strategy": "zero3"})
    launching.launch(WORKER, [{"config": values, "stop_at": []}], processes=2, work=tmp_path)
    assert result(tmp_path / "run")["steps"] == 2 * STEPS
    assert (tmp_path / "run/stages/1/merged/model.safetensors").is_file()


def test_the_last_stages_adapter_stands_on_the_model_of_the_first(shared: Path, tmp_path: Path):
    adapter = {"method": "lora", "r": 4, "target_modules": ["q_proj"]}
    values = settings(shared, tmp_path, "run", stages=[{}, {"adapter": adapter}])
    values["train"] = {"max_steps": 1}
    train(parse_config(values, source="test"))
    about = json.loads((tmp_path / "run/model/adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(tmp_path / "run/stages/1/model")
    file = tmp_path / "new.csv"
    file.write_text("text\na fine film\n")
    assert tiny.command("predict", tmp_path / "run", file).code == 0


# ---------------------------------------------------------------- what can be known before


def test_a_plan_is_of_the_fullest_stage_and_adds_up_their_times(shared: Path, tmp_path: Path):
    config = parse_config(settings(shared, tmp_path, "run", stages=STAGES), source="test")
    plan = plan_run(config, gpu="l4", usd_per_hour=1.0, compare=False)
    head, whole = (plan_run(stage.beforehand, gpu="l4", usd_per_hour=1.0, compare=False) for stage in stages_of(config))
    assert list(plan.stages) == ["1-head", "2-all"]
    assert head.memory.total < whole.memory.total == plan.memory.total
    assert plan.num_steps == 2 * STEPS
    assert head.time.total_s is not None
    assert whole.time.total_s is not None
    assert plan.time.total_s == head.time.total_s + whole.time.total_s
    assert plan.disk_bytes == head.disk_bytes + whole.disk_bytes
    assert [line.partition(":")[0] for line in summary(plan)[-2:]] == ["stage 1-head", "stage 2-all"]
    assert json.loads(as_json_text(plan))["stages"]["1-head"]["num_steps"] == STEPS
    with pytest.raises(UserError, match="--apply does not go with stages"):
        apply_choice(plan, tmp_path / "run.yaml")


def test_a_check_shows_each_stage(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, settings(shared, tmp_path, "run", stages=STAGES))
    found = check_run(file)
    assert found.errors == []
    assert [facts["schedule"]["total_steps"] for facts in found.facts["stages"].values()] == [STEPS, STEPS]
    shown = lines(found.facts)
    assert [line for line in shown if line.startswith("stage")] == ["stage 1-head", "stage 2-all"]
    assert sum("learning rate: start 0.01," in line for line in shown) == 1
    assert len(found.rows) == len({str(row) for row in found.rows})
    assert not (tmp_path / "run").exists()


def test_a_launch_refuses_a_mistake_in_the_second_stage_before_it_starts_processes(shared: Path, tmp_path: Path):
    values = settings(shared, tmp_path, "run", stages=[{}, {"data": {"train": "nowhere.csv"}}])
    outcome = tiny.command("launch", tiny.write_run(tmp_path, values), "--processes", 2)
    assert outcome.code == 2
    assert "stage 2: data.train" in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_a_job_looks_at_the_stage_that_is_trained(tmp_path: Path):
    for name, steps in (("2-all", [3, 5]), ("10-last", []), ("1-head", [4])):
        for step in steps:
            (tmp_path / f"stages/{name}/checkpoints/step-{step:08d}").mkdir(parents=True)
    assert checkpoint_step(tmp_path) == 4 + 5
    assert current_folder(tmp_path) == tmp_path / "stages/2-all"
    (tmp_path / "stages/10-last").mkdir()
    assert current_folder(tmp_path) == tmp_path / "stages/10-last"
    assert checkpoint_step(tmp_path / "stages/1-head") == 4
    assert final_folder(tmp_path) == tmp_path
