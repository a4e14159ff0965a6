"""What a stage is trained with: its own settings laid over the run's, and the model of the stage before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftscale.base.errors import UserError
from ftscale.config import Config, load_config, parse_config, write_config
from ftscale.config.load import public
from ftscale.config.stages import by_stage, stages_of

RUN: dict[str, Any] = {
    "task": {"name": "text_classification", "max_length": 64, "labels": ["ham", "spam"]},
    "run_folder": "runs/mine",
    "model": {"name": "base", "init": "random", "overrides": {"num_hidden_layers": 2}},
    "head": {"hidden_sizes": [8]},
    "data": {"train": {"path": "rows.csv", "columns": {"text": "body"}}, "eval_ratio": 0.1},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "cosine", "options": {"num_cycles": 3}},
    "checkpoint": {"async": True, "keep": 3},
}


def parsed(*stages: Any, **changes: Any) -> Config:
    return parse_config({**RUN, **changes, "stages": list(stages)}, source="test")


def sections(*stages: Any, **changes: Any) -> list[Config]:
    return [stage.config for stage in stages_of(parsed(*stages, **changes))]


def problems(*stages: Any, **changes: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        parsed(*stages, **changes)
    return [problem.removeprefix("test: ") for problem in caught.value.problems]


def test_without_stages_a_configuration_says_nothing_of_them(tmp_path: Path):
    config = parse_config(RUN, source="test")
    assert stages_of(config) == []
    assert "stages" not in config.model_dump()
    write_config(config, tmp_path / "config.yaml")
    assert "stages" not in (tmp_path / "config.yaml").read_text()
    assert parsed() == config


def test_a_stage_differs_from_the_run_in_its_own_settings_alone():
    [stage] = sections({"name": "first", "optimizer": {"lr": 0.5}, "checkpoint": {"async": False}, "seed": 7})
    whole = parse_config(RUN, source="test")
    assert stage.optimizer == whole.optimizer.model_copy(update={"lr": 0.5})
    assert stage.checkpoint == whole.checkpoint.model_copy(update={"in_background": False})
    assert stage.seed == 7
    assert stage.run_folder == "runs/mine/stages/1-first"
    assert stage.stages == ()
    same = ("task", "model", "head", "data", "schedule", "train", "batch")
    assert [getattr(stage, name) for name in same] == [getattr(whole, name) for name in same]


def test_what_is_no_section_is_replaced_as_a_whole():
    changes = {"schedule": {"options": {"min_lr": 0.0}}, "data": {"train": ["a.csv", "b.csv"]}}
    [stage] = sections({**changes, "model": {"overrides": {}}})
    assert stage.schedule.name == "cosine"
    assert stage.schedule.options == {"min_lr": 0.0}
    assert stage.model.overrides == {}
    assert [source.path for source in stage.data.train] == ["a.csv", "b.csv"]
    assert stage.data.eval_ratio == 0.1


def test_another_task_or_adapter_stands_alone():
    lora = {"method": "lora", "r": 4, "target_modules": "all-linear"}
    first, second, third = sections(
        {"task": {"max_length": 32}},
        {"task": "causal_lm", "head": {}},
        {"task": {"name": "text_classification"}, "adapter": {"method": "none"}},
        adapter=lora,
    )
    assert (first.task.model_dump()["max_length"], first.task.model_dump()["labels"]) == (32, ("ham", "spam"))
    assert (second.task.name, second.task.model_dump()["max_length"]) == ("causal_lm", None)
    assert third.task == parse_config(RUN, source="test").task
    assert [stage.adapter.model_dump() for stage in (first, third)] == [lora, {"method": "none"}]


def test_another_method_stands_alone_and_the_same_one_is_changed():
    toys = Path(__file__).resolve().parents[1] / "methods/toys"
    pulled = {"file": str(toys / "pulled.py"), "name": "pulled", "strength": 0.25}
    contrast = {"file": str(toys / "contrast.py"), "name": "contrast"}
    first, second, third, fourth = sections(
        {"method": {"strength": 2.0}}, {"method": contrast}, {"method": "supervised"}, {}, method=pulled
    )
    assert first.method.model_dump() == {**pulled, "strength": 2.0}
    assert (second.method.name, "strength" in second.method.model_dump()) == ("contrast", False)
    assert third.method.model_dump() == {"name": "supervised"}
    assert fourth.method.model_dump() == pulled


def test_a_later_stage_begins_with_the_model_of_the_one_before():
    lora = {"adapter": {"method": "lora", "r": 4, "target_modules": ["query"]}}
    first, second, third = sections({}, lora, {"name": "last"})
    assert (first.model.name, first.model.init, first.head.hidden_sizes) == ("base", "random", (8,))
    assert (second.model.name, second.model.init) == ("runs/mine/stages/1/model", "pretrained")
    assert second.model.overrides == {"num_hidden_layers": 2}
    assert second.head.hidden_sizes == ()  # the model has it
    assert third.model.name == "runs/mine/stages/2/merged"


def test_before_there_is_a_model_the_first_ones_stands_for_it():
    stages = stages_of(parsed({"model": {"processor": "words"}}, {}))
    assert (stages[1].config.model.name, stages[1].config.model.processor) == ("runs/mine/stages/1/model", None)
    assert (stages[1].beforehand.model.name, stages[1].beforehand.model.processor) == ("base", "words")
    assert stages[0].beforehand == stages[0].config


@pytest.mark.parametrize("name", ["a/b", "..", "", "-x", "a b", 3])
def test_a_name_is_a_part_of_a_folders_name(name: Any):
    [said] = problems({"name": name})
    assert said.startswith(f"stages[0].name = {name!r} is a part of its folder's name")


def test_mistakes_are_told_with_their_stage():
    said = problems({"optimizer": {"lr": 0}}, {"name": "b", "optimiser": {}}, {"model": "other"}, {"stages": []})
    assert [line.partition(" ")[0] for line in said] == ["stages[2].model.name", "stages[3].stages", "stage", "stage"]
    assert said[2].startswith("stage 1: optimizer.lr = 0 must be greater than 0")
    assert said[3] == "stage 2-b: optimiser is not a setting; did you mean optimizer?"
    assert "stages.0 = 'head' must be a section" in problems("head")[0]
    with pytest.raises(UserError, match="stages = .* must be a list"):
        parse_config({**RUN, "stages": {"name": "head"}}, source="test")


def test_what_cannot_go_on_is_refused():
    prompt = {"method": "prompt_tuning", "num_virtual_tokens": 4}
    [said] = problems({"adapter": prompt}, {})
    assert said.startswith("stage 2: the stage before has adapter.method = prompt_tuning, which learns a prompt")
    [said] = problems({}, {"head": {"hidden_sizes": [4]}})
    assert said.startswith("stage 2: head.hidden_sizes asks for an MLP head, and an earlier stage")


def test_problems_that_all_stages_have_come_once():
    assert by_stage({"1": ["a", "b"], "2": ["b", "c"]}) == ["b", "stage 1: a", "stage 2: c"]
    assert by_stage({"1": ["a"]}) == ["stage 1: a"]
    assert by_stage({"1": [], "2": ["a"]}) == ["stage 2: a"]


def test_settings_of_the_command_line_reach_into_stages(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("task: text_classification\nrun_folder: r\nmodel: m\ndata: {train: a.csv}\n")
    overrides = ["stages[0].name=head", "stages.0.task.max_length=9", "stages[1].data.train.0.path=b.csv"]
    first, second = stages_of(load_config(tmp_path / "run.yaml", overrides))
    assert first.name == "1-head"
    assert first.config.task.model_dump()["max_length"] == 9
    assert second.config.data.train[0].path == "b.csv"


def test_a_written_configuration_is_read_back_with_its_stages(tmp_path: Path):
    config = parsed({"name": "head", "optimizer": {"lr": 1e-3}}, {"data": {"train": "https://u:secret@host/rows.csv"}})
    write_config(config, tmp_path / "secret.yaml", with_secrets=True)
    assert load_config(tmp_path / "secret.yaml") == config
    write_config(config, tmp_path / "config.yaml")
    assert "secret@" not in (tmp_path / "config.yaml").read_text()
    assert load_config(tmp_path / "config.yaml") == public(config)


def test_stages_of_two_tasks_share_rows_of_which_each_reads_its_own_columns():
    rows = {"path": "rows.csv", "columns": {"text": "body", "label": "kind", "tetx": "x"}, "set": {"text_pair": "none"}}
    words, classes = sections(
        {"name": "words", "task": {"name": "masked_lm"}}, {"name": "classes"}, data={"train": rows, "test": rows}
    )
    for source in (*words.data.train, *words.data.test):
        assert source.columns == {"text": "body", "tetx": "x"}, "what no task reads is still to be told"
        assert source.set == {}
    assert classes.data.train[0].columns == rows["columns"]
    assert classes.data.train[0].set == rows["set"]
