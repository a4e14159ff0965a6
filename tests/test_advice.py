"""What messages advise: every setting that they name exists, and advice is followed to see whether it helps."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from advice import follow
from pydantic import ValidationError

import ftscale
from ftscale.base.errors import counted, nearest, unknown_name
from ftscale.config import Config
from ftscale.config.compatibility import TABLE, check_combination
from ftscale.config.overrides import apply_overrides
from ftscale.config.problems import problems_of

FILE_NAMES = ("train.csv", "train.de", "train.en", "train.sbatch", "data.json", "model.safetensors", "task.description")
FILE_NAMES += tuple(f"train.csv.{end}" for end in ("gz", "bz2", "xz", "zst"))
FILE_NAMES += ("report.json", "report.html", "data.paragraphs.qas")
"""What looks like a setting in the texts of the package and is none."""
NAMED = re.compile(rf"(?<![\w./])(?:{'|'.join(Config.model_fields)})(?:\.\w+|\[\d+\])+")

LORA = {"adapter": {"method": "lora", "r": 8}}
NF4 = {"model": {"name": "m", "quantization": "nf4"}}
STREAM = {"data": {"train": "rows.jsonl", "streaming": True}, "train": {"max_steps": 9}}
COMBINATIONS = {
    "quantised base without an adapter": NF4,
    "quantised base, random weights": {**LORA, "model": {"name": "m", "quantization": "int8", "init": "random"}},
    "quantised base, ZeRO-3": {**NF4, **LORA, "distributed": {"strategy": "zero3"}},
    "adapter and trainable": {**LORA, "trainable": {"freeze_embeddings": True}},
    "adalora under ZeRO": {"adapter": {"method": "adalora"}, "distributed": {"strategy": "zero2"}},
    "random base with an adapter, ZeRO-3": {
        **LORA,
        "model": {"name": "m", "init": "random"},
        "distributed": {"strategy": "zero3_offload"},
    },
    "learned prompt, flat layout": {"adapter": {"method": "prompt_tuning"}, "batch": {"layout": "flat"}},
    "last_blocks scope without a number": {"trainable": {"scope": "last_blocks"}},
    "stream cut by targets": {**STREAM, "batch": {"unit": "targets"}},
    "stream with a share held out": {**STREAM, "data": {**STREAM["data"], "eval_ratio": 0.1}},
    "batches of like length without a shuffle": {**STREAM, "data": {**STREAM["data"], "group_by_length": True}},
    "adafactor under ZeRO": {"optimizer": {"name": "adafactor"}, "distributed": {"strategy": "zero2"}},
    "stream without a number of steps": {"data": {"train": "rows.jsonl", "streaming": True}},
}
PLAIN = {"task": "causal_lm", "run_folder": "run", "model": {"name": "m"}, "data": {"train": "rows.jsonl"}}


def test_every_setting_that_a_text_names_is_taken_by_the_command_line():
    """Also where it has a place in brackets: what it is set to is wrong, not its name."""
    named = {name for path in Path(ftscale.__file__).parent.rglob("*.py") for name in _named(path)}
    assert len(named) > 50
    for name in sorted(named - set(FILE_NAMES)):
        task = {"name": _task_of(name)} if name.startswith("task.") else "causal_lm"
        settings = apply_overrides({**PLAIN, "task": task}, [f"{name}=x"])
        assert not any("is not a setting" in problem for problem in _problems(settings)), name


def _named(path: Path) -> set[str]:
    """Settings in the texts of a file that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return {found for text in texts if isinstance(text.value, str) for found in NAMED.findall(text.value)}


def _task_of(name: str) -> str:
    """A task that has the setting."""
    from ftscale.config.tasks import SETTINGS

    key = name.split(".")[1]
    for task in SETTINGS:
        settings = {**PLAIN, "task": {"name": task, key: "x"}}
        if not any(f"task.{key} is not a setting" in text for text in _problems(settings)):
            return task
    raise AssertionError(f"no task has {name}")


def _problems(settings: dict[str, Any]) -> list[str]:
    try:
        Config.model_validate(settings)
    except ValidationError as error:
        return problems_of(error, model=Config, data=settings)
    return []


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_advice_of_a_refused_combination_mends_it(name: str):
    settings = {**PLAIN, **COMBINATIONS[name]}
    [text] = check_combination(Config.model_validate(settings))
    assert text == next(row.text for row in TABLE if row.name == name)
    advised = follow(text, [])
    assert advised, text
    mended = Config.model_validate(apply_overrides(settings, advised))
    assert text not in check_combination(mended)


def test_places_in_brackets_are_those_with_dots():
    for written in ("data.train[0].path=a.csv", "data.train.0.path=a.csv"):
        assert apply_overrides(PLAIN, [written])["data"]["train"] == [{"path": "a.csv"}]
    many = {"data": {"train": ["a.csv", {"path": "b.csv"}]}}
    assert apply_overrides(many, ["data.train[1].limit=3"])["data"]["train"] == ["a.csv", {"path": "b.csv", "limit": 3}]
    assert apply_overrides(many, ["data.train[1]=c.csv"])["data"]["train"] == ["a.csv", "c.csv"]


def test_names_are_compared_without_capitals():
    assert nearest("AdamW", ["adam", "adamw", "lion"]) == "adamw"
    assert nearest("bf16", ["FP32", "BF16"]) == "BF16"
    assert nearest("nothing", ["adam"]) is None
    assert unknown_name("optimizer.name", "ADAM", ["adam", "adamw"]).endswith("did you mean 'adam'?")


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [(1, "row", "1 row"), (0, "row", "0 rows"), (2, "row", "2 rows"), (1, "process", "1 process")]
    + [(3, "process", "3 processes"), (1, "class", "1 class"), (2, "class", "2 classes")],
)
def test_one_thing_is_not_spoken_of_as_several(number: int, noun: str, told: str):
    assert counted(number, noun) == told
