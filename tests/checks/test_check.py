"""`ftscale check`: what it says of real data, what it finds wrong, and that it is quick where only settings are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from ftscale.checks import check_run

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"


def stories(work: Path, rows: list[dict[str, Any]], shared: Path, **changes: Any) -> dict[str, Any]:
    """A causal LM on rows of a JSON lines file."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "task": {"name": "causal_lm", "max_length": 64},
        "run_folder": str(work / "run"),
        "model": str(shared / "weights/stories260K"),
        "data": {"train": str(work / "rows.jsonl"), "cache_dir": str(work / "cache")},
        "batch": {"global_size": 2, "micro_size": 1},
        **changes,
    }


PROMPTS = [
    {"prompt": "Once upon a time", "completion": " there was a cat."},
    {"prompt": "Tom had a red ball", "completion": " and a dog."},
    {"prompt": "Lily and Ben", "completion": " were playing. " * 30},
    {"prompt": "Mom said", "completion": ""},
    {"prompt": "Once upon a time", "completion": " there was a cat."},
    {"prompt": "The bird wanted", "completion": " to fly."},
]


def test_targets_are_marked_in_the_text(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, stories(tmp_path, PROMPTS, shared, data={**_data(tmp_path), "max_empty": 0.5}))
    outcome = tiny.command("check", file)
    assert outcome.code == 0, outcome.stderr
    assert "<s> Once upon a time[[ there was a cat.</s>]]" in outcome.stdout
    assert "<s> Tom had a red ball[[ and a dog.</s>]]" in outcome.stdout


def _data(work: Path) -> dict[str, Any]:
    return {"train": str(work / "rows.jsonl"), "cache_dir": str(work / "cache")}


def test_figures_of_the_sample_are_counted(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, PROMPTS, shared, data={**_data(tmp_path), "max_empty": 0.5})
    report = check_run(tiny.write_run(tmp_path, settings))
    assert report.errors == []
    train = report.facts["data"]["train"]
    assert (train["rows_looked_at"], train["rows"], train["kept"]) == (6, 6, 5)
    assert (train["truncated"], train["no_target"], train["dropped"]) == (1, 1, {"no_target": 1})
    assert train["duplicates"] == 1
    assert train["lengths"]["max"] == 64
    assert 0 < train["share_of_targets"] < 1
    assert train["end_supervised"] == 1.0
    assert train["doubled_special_tokens"] == 0
    assert any("repeat another exactly" in warning for warning in report.warnings)
    schedule = report.facts["schedule"]
    assert (schedule["steps_per_epoch"], schedule["total_steps"], schedule["exact"]) == (3, 9, True)
    assert schedule["batch"].startswith("global batch 2 samples = 1 per device x 2 accumulation x 1 process")
    rates = schedule["learning_rate"]
    assert rates["start"] == pytest.approx(5e-5)
    assert rates["end"] == pytest.approx(5e-5 / 9)


def test_a_special_token_that_stands_twice_is_found(shared: Path, tmp_path: Path):
    rows = [{"text": f"<s>once upon a time {number}"} for number in range(4)]  # the tokenizer puts <s> before it again
    report = check_run(tiny.write_run(tmp_path, stories(tmp_path, rows, shared)))
    assert report.facts["data"]["train"]["doubled_special_tokens"] == 4
    assert any("special token twice in a row" in warning for warning in report.warnings)


def test_rows_in_train_and_eval_are_counted(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, PROMPTS, shared)
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS[:2]))
    settings["data"] |= {"eval": str(tmp_path / "eval.jsonl"), "max_empty": 0.5}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert report.facts["data"]["overlap"] == 2
    assert any("are in data.train too" in warning for warning in report.warnings)


def test_too_many_rows_without_a_target_are_an_error_as_in_training(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, stories(tmp_path, PROMPTS, shared))
    outcome = tiny.command("check", file)
    assert outcome.code == 2
    says = f"1 of 6 rows of {tmp_path / 'rows.jsonl'} have no target left (16.7%), more than data.max_empty = 1.0%"
    assert says in outcome.stdout
    assert says in tiny.command("train", file).stderr


def test_label_distribution_of_real_reviews(shared: Path, tmp_path: Path):
    report = check_run(tiny.write_run(tmp_path, tiny.settings(shared, tmp_path)), nodes=2, gpus_per_node=2)
    assert report.errors == []
    distribution = report.facts["data"]["label_distribution"]
    assert set(distribution) == {"0", "1"}
    assert sum(distribution.values()) == 64
    assert report.facts["data"]["train"]["share_of_targets"] is None
    assert report.facts["schedule"]["batch"].startswith("global batch 8 samples = 8 per device x 1 accumulation x 4")


def test_the_tokenizer_is_held_against_the_model(shared: Path, tmp_path: Path):
    settings = stories(tmp_path, [{"text": "once upon a time"}] * 3, shared)
    settings["model"] = {"name": settings["model"], "processor": str(shared / "weights/tokenizers/gpt2")}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert report.facts["tokenizer"]["tokens"] == 50257
    assert report.facts["tokenizer"]["embeddings"] == 512
    assert any("49745 are new" in warning for warning in report.warnings)
    settings |= {"adapter": {"method": "lora"}}
    settings["model"] |= {"quantization": "nf4"}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert any("cannot grow in a quantised model" in error for error in report.errors)


def test_json_is_the_report(shared: Path, tmp_path: Path):
    outcome = tiny.command("check", tiny.write_run(tmp_path, tiny.settings(shared, tmp_path)), "--json")
    found = json.loads(outcome.stdout)
    assert outcome.code == 0
    assert set(found) == {"errors", "warnings", "facts", "rows"}
    assert set(found["facts"]) >= {"combination", "data", "tokenizer", "schedule"}


def test_all_that_is_wrong_with_settings_and_files_comes_at_once_without_torch(shared: Path, tmp_path: Path):
    settings = tiny.settings(shared, tmp_path)
    settings["optimizer"] = {"lrr": 1}
    settings["data"]["train"]["path"] = str(tmp_path / "nowhere.tsv")
    file = tiny.write_run(tmp_path, settings)
    program = f"""
import sys
sys.argv = ["ftscale", "check", {str(file)!r}]
from ftscale.cli import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 2, stop.code
heavy = {{"torch", "transformers", "datasets", "numpy", "peft"}} & set(sys.modules)
assert not heavy, heavy
"""
    outcome = tiny.process("python", "-c", program)
    assert outcome.code == 0, outcome.stderr
    assert "optimizer.lrr is not a setting" in outcome.stderr
    assert "nowhere.tsv" in outcome.stderr


def test_a_refused_combination_and_a_missing_column_come_together(shared: Path, tmp_path: Path):
    settings = tiny.settings(shared, tmp_path, model={"name": "m", "quantization": "nf4"})
    settings["data"]["train"]["columns"] = {"text": 7, "label": 1}
    report = check_run(tiny.write_run(tmp_path, settings))
    assert len(report.errors) == 2
    assert "model.quantization needs an adapter" in report.errors[0]
    assert "data.train[0].columns.text = 7" in report.errors[1]


def test_what_train_refuses_check_refuses(shared: Path, tmp_path: Path):
    file = tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, schedule={"warmup_steps": 9}))
    for command in ("check", "train"):
        outcome = tiny.command(command, file)
        assert outcome.code == 2
        assert "schedule.warmup_steps = 9 must be at most 3" in outcome.stdout + outcome.stderr


def test_columns_have_one_home():
    from ftscale.config.schema import Config
    from ftscale.tasks import COLUMNS, build_task

    for name, columns in COLUMNS.items():
        plain = {"task": name, "run_folder": "r", "model": "m", "data": {"train": "t"}}
        assert build_task(Config.model_validate(plain).task).columns is columns
