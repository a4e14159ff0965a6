"""Halves of surrogate pairs are refused by row in every task, and Parquet's own nulls are left out of chats."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pandas
import pytest
import tiny
from transformers import AutoTokenizer

from ftscale.config.schema import SourceConfig
from ftscale.config.tasks import SETTINGS
from ftscale.data.heard import say_once
from ftscale.data.sources import read_rows
from ftscale.tasks.causal_rows import encode_row

HALF = "broken \ud83d half"
PLACE = r"a.jsonl:2: {} holds '\ud83d' at character 8, which is half of a pair and no character"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": [{HALF: 1}]}}]}


@pytest.mark.parametrize(
    ("task", "good", "bad"),
    [
        ("text_classification", {"text": "a", "label": "x"}, {"text": HALF}),
        ("text_classification", {"text": "a", "text_pair": "b", "label": "x"}, {"text_pair": HALF}),
        ("text_classification", {"text": "a", "label": "x"}, {"label": HALF}),
        ("text_classification", {"text": "a", "label": ["x"]}, {"label": ["x", HALF]}),
        ("token_classification", {"words": ["a"], "tags": ["O"]}, {"words": [HALF]}),
        ("token_classification", {"words": ["a"], "tags": ["O"]}, {"tags": [HALF]}),
        ("seq2seq", {"source": "a", "target": "b"}, {"source": HALF}),
        ("seq2seq", {"source": "a", "target": "b"}, {"target": HALF}),
        ("image_classification", {"image": "a.png", "label": "x"}, {"image": HALF}),
        ("causal_lm", {"text": "a"}, {"text": HALF}),
        ("causal_lm", {"prompt": "a", "completion": "b"}, {"prompt": HALF}),
        ("causal_lm", {"prompt": "a", "completion": "b"}, {"completion": HALF}),
        ("causal_lm", {"instruction": "a", "input": "b", "output": "c"}, {"input": HALF}),
        ("causal_lm", {"messages": TURNS}, {"messages": [TURNS[0], {"role": "assistant", "content": HALF}]}),
        ("causal_lm", {"messages": TURNS}, {"messages": [TURNS[0], CALL]}),
        ("causal_lm", {"messages": TURNS, "tools": "[]"}, {"tools": [{"name": HALF}]}),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_with_its_row(shared: Path, tmp_path: Path, task, good, bad):
    lines = [json.dumps(row) for row in (good, {**good, **bad}, good)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    settings = tiny.settings(
        shared,
        tmp_path,
        task={"name": task},
        data={"train": str(tmp_path / "a.jsonl"), "cache_dir": str(tmp_path / "cache")},
    )
    if task == "image_classification":
        settings["model"] = str(shared / "weights/mobilenet_v1_0.25_224")
    if task == "causal_lm":
        settings["task"]["chat_template"] = "alpaca"
    if isinstance(good.get("label"), list):
        settings["task"]["problem"] = "multi_label"
    [name] = bad
    checked = tiny.command("check", tiny.write_run(tmp_path, settings))
    assert checked.code == 2
    assert PLACE.format(name) in checked.stderr


def test_whole_pairs_and_every_other_character_are_read(tmp_path: Path):
    text = "\U0001f600 \u00e9 \ufffd \u0000"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": HALF[:3]}))
    assert [row["text"] for row in read_rows(SourceConfig(path=str(tmp_path / "a.jsonl")), roles=(("text",),))] == [
        text,
        "bro",
    ]


# ---------------------------------------------------------------- nulls of typed files


def calls(**arguments: Any) -> dict[str, Any]:
    called = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    tool = {"name": "weather", "parameters": {"properties": {name: {"type": "string"} for name in arguments}}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [called]}]
    return {"messages": [*turns, {"role": "assistant", "content": "So."}], "tools": [tool]}


CHATS = [calls(city="Ulm"), calls(h24=True, zone={"name": "UTC"}), calls(zone={"offset": 1}), calls()]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(read_rows(SourceConfig(path=str(path)), roles=SETTINGS["causal_lm"].columns))


def test_chats_of_parquet_are_those_of_json_lines(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    say_once.cache_clear()
    qwen2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")
    frame = pandas.DataFrame(CHATS)
    frame.to_parquet(tmp_path / "chats.parquet")
    frame.to_json(tmp_path / "chats.jsonl", orient="records", lines=True)
    with caplog.at_level(logging.WARNING, logger="ftscale"):
        typed, plain = rows_of(tmp_path / "chats.parquet"), rows_of(tmp_path / "chats.jsonl")
    assert [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in typed] == [
        {"city": "Ulm"},
        {"h24": True, "zone": {"name": "UTC"}},
        {"zone": {"offset": 1}},
        {},
    ]
    for one, other in zip(typed, plain, strict=True):
        found, expected = (encode_row(row, qwen2, targets="assistant", template=None) for row in (one, other))
        assert qwen2.decode(found.input_ids) == qwen2.decode(expected.input_ids)
        assert found.labels == expected.labels
    [warning] = {record.message for record in caplog.records if "messages" in record.message}
    assert warning.startswith("data.train[0].path: ")
    assert "chats.parquet: nulls inside the objects of messages are left out" in warning


def test_a_null_that_json_lines_hold_stays(shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    qwen2 = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")
    (tmp_path / "a.jsonl").write_text(json.dumps(calls(city=None, zone={"name": None})))
    [row] = rows_of(tmp_path / "a.jsonl")
    ids = encode_row(row, qwen2, targets="assistant", template=None).input_ids
    assert '"arguments": {"city": null, "zone": {"name": null}}' in qwen2.decode(ids)
    assert caplog.text == ""


def test_arguments_as_json_text_keep_their_nulls_in_parquet(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    say_once.cache_clear()
    turn = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": '{"a": null}'}]}
    pandas.DataFrame([{"messages": [TURNS[0], turn]}]).to_parquet(tmp_path / "a.parquet")
    [row] = rows_of(tmp_path / "a.parquet")
    assert row["messages"][1]["tool_calls"] == [{"name": "f", "arguments": '{"a": null}'}]
    assert caplog.text == ""
