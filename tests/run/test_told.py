"""What the training rows told is kept: a start over prepared rows reads none of them, and begins as the first did."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.config import Config, parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.data import cache as cache_module
from ftscale.data.prepare import source_fingerprints
from ftscale.methods import build_method
from ftscale.run.agreement import derived
from ftscale.run.prepared_data import evaluation_rows, num_steps_of, prepare_inputs
from ftscale.run.told import _comes_back, told_by_rows

TOYS = Path(__file__).resolve().parents[1] / "tasks/toys"
READERS = ("ftscale.run.told.read_rows", "ftscale.data.prepare.read_rows")
ROWS = [f"a film number {number},{'good' if number % 3 else 'bad'}" for number in range(30)]


def config_of(shared: Path, work: Path, rows: list[str], **changes: Any) -> Config:
    (work / "rows.csv").write_text("\n".join(["text,label", *rows, ""]))
    data = {"train": str(work / "rows.csv"), "cache_dir": str(work / "cache"), "eval_ratio": 0.2, "stratify": "label"}
    return parse_config(tiny.settings(shared, work, **{"data": data, "train": {"epochs": 2}, **changes}), source="test")


def told(config: Config) -> dict[str, Any]:
    return told_by_rows(config, build_method(config.method, config.task), ["rows"])


def unread(*arguments: Any, **options: Any) -> None:
    pytest.fail("a row was read")


def test_a_second_start_reads_no_row_and_begins_as_the_first(shared, tmp_path, monkeypatch, caplog):
    config = config_of(shared, tmp_path, [*ROWS, "a film number 1,Bad", "a film number 1,nan"] * 2)
    said, found = [], []
    for number in range(2):
        caplog.clear()
        inputs = prepare_inputs(config)
        assert isinstance(inputs.config.task.labels, tuple)
        found.append((derived(inputs), inputs.config, num_steps_of(inputs), inputs.evaluation.samples_hash))
        found[-1] += ([batch.tolist() for batch in inputs.order.epoch(1)],)
        said.append([record.getMessage() for record in caplog.records if record.name == "ftscale"])
        if number == 0:
            for reader in READERS:
                monkeypatch.setattr(reader, unread)
    assert found[0] == found[1]
    assert said[0] == said[1]
    for sentence in (
        "the class 'nan' (",
        "and 'Bad' (2 rows) differ in case",
        "another label",
        "input of a row of data.train too",
    ):
        assert any(sentence in line for line in said[1]), sentence
    assert evaluation_rows(inputs.config, inputs.task).samples_hash == inputs.evaluation.samples_hash


def test_other_rows_are_asked_anew(shared, tmp_path):
    def told_of(rows: list[str]) -> dict[str, Any]:
        config = config_of(shared, tmp_path, rows)
        task = build_method(config.method, config.task)
        prints = source_fingerprints(config.data.train, name="train", roles=task.settings.roles)
        return told_by_rows(config, task, prints)

    assert told_of(ROWS) == {"labels": ("bad", "good")}
    assert told_of([*ROWS, *["a film,so so"] * 5]) == {"labels": ("bad", "good", "so so")}


@pytest.mark.parametrize("damage", [b"", b"{}", b"x"])
def test_what_was_told_is_asked_anew_where_it_is_damaged(shared, tmp_path, damage):
    config = config_of(shared, tmp_path, ROWS)
    first = told(config)
    [report] = (tmp_path / "cache").glob("*/report.json")
    report.write_bytes(damage or report.read_bytes().replace(b"good", b"goof"))
    assert told(config) == first == {"labels": ("bad", "good")}
    assert report.stat().st_mode & 0o077 == 0 or report.parent.stat().st_mode & 0o077 == 0


def test_what_another_user_was_told_is_refused(shared, tmp_path, monkeypatch):
    config = config_of(shared, tmp_path, ROWS)
    told(config)
    own = cache_module.own_id(tmp_path)
    monkeypatch.setattr(cache_module, "own_id", lambda folder: own + 1)
    with pytest.raises(UserError, match=r"data\.cache_dir.*another user.*a folder of your own"):
        told(config)


def test_a_template_that_was_edited_is_told_anew(shared, tmp_path):
    template = tmp_path / "chat.jinja"
    for text in ("{{ messages[0].content }}", "{{ messages[0].content }} "):
        template.write_text(text)
        config = config_of(shared, tmp_path, ROWS, task={"name": "causal_lm", "chat_template": str(template)})
        assert told(config) == told(config) == {"chat_template": text}


def test_a_learned_vocabulary_is_kept(shared, tmp_path, monkeypatch):
    shutil.copytree(TOYS, tmp_path / "toys")
    task = {"file": str(tmp_path / "toys/words.py"), "name": "words"}
    rows = [row.replace("good", "1").replace("bad", "0") for row in ROWS]
    model = {"name": str(shared / "weights/stories260K"), "init": "random"}
    config = config_of(shared, tmp_path, rows, task=task, model=model)
    first = told(config)
    assert first["words"] == sorted({word for row in rows for word in row.split(",")[0].split()})
    monkeypatch.setattr(READERS[0], unread)
    assert told(config) == first


@pytest.mark.parametrize(
    ("value", "comes_back"),
    [
        ({"labels": ("a", "b")}, True),
        ({"labels": ["a", "b"]}, False),  # the setting has a tuple
        ({"words": ["a"], "sizes": {"a": 1.5}}, True),
        ({"words": ("a",)}, False),
        ({"words": {"a"}}, False),
        ({"words": {1: "a"}}, False),
        ({"words": float("inf")}, False),
        ({}, True),
    ],
)
def test_only_what_json_gives_back_is_kept(value, comes_back):
    assert _comes_back(value, SETTINGS["text_classification"]()) is comes_back
