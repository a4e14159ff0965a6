"""What a resume compares with the run that it goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftscale.config import Config, parse_config, write_config
from ftscale.errors import UserError
from ftscale.run_folder import check_run_folder


def config_of(folder: Path, task: dict[str, Any]) -> Config:
    values = {"task": task, "run_folder": str(folder), "model": "some/model", "data": {"train": "rows.csv"}}
    return parse_config(values, source="test")


def resume(folder: Path, *, began: dict[str, Any], now: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_config(config_of(folder, began), folder / "config.yaml")
    check_run_folder(config_of(folder, now), resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("began", "now"),
    [
        ({"name": "text_classification", "labels": ["a", "b"]}, {"name": "text_classification"}),
        (
            {"name": "token_classification", "labels": ["O", "B-X", "I-X"], "scheme": "IOB2"},
            {"name": "token_classification"},
        ),
        ({"name": "causal_lm", "chat_template": "{{ messages }}"}, {"name": "causal_lm", "chat_template": "MINE"}),
        ({"name": "causal_lm", "chat_template": "alpaca"}, {"name": "causal_lm", "chat_template": "alpaca"}),
    ],
)
def test_what_the_first_start_filled_in_is_no_difference(tmp_path: Path, began: dict[str, Any], now: dict[str, Any]):
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    if now.get("chat_template") == "MINE":
        now = {**now, "chat_template": str(tmp_path / "mine.jinja")}
    resume(tmp_path / "run", began=began, now=now)


@pytest.mark.parametrize(
    ("began", "now", "problem"),
    [
        ({"max_length": 64}, {}, "task.max_length: 64 -> null"),
        ({"chat_template": "alpaca"}, {}, "the text of task.chat_template is not what it was"),
        ({"chat_template": "alpaca"}, {"chat_template": "chatml"}, "the text of task.chat_template is not what it was"),
        ({}, {"generate": {}}, "task.generate: null -> "),
    ],
)
def test_a_setting_that_was_taken_out_is_a_difference(
    tmp_path: Path, began: dict[str, Any], now: dict[str, Any], problem: str
):
    with pytest.raises(UserError, match=problem):
        resume(tmp_path / "run", began={"name": "causal_lm", **began}, now={"name": "causal_lm", **now})
