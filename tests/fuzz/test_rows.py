"""Whatever JSON stands in a row, of a chat or of any task, it is prepared or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz.anything import altered, as_json, budget, json_values, refused
from hypothesis import given
from hypothesis import strategies as st

from ftscale.config import parse_config
from ftscale.config.schema import ModelConfig
from ftscale.data.chat import TEMPLATES, normalize, read_template, row_tools
from ftscale.data.sources import read_rows
from ftscale.modalities.text import Text
from ftscale.run.prepared_data import Preparer
from ftscale.tasks import build_task
from ftscale.tasks.causal_rows import encode_row_prompt
from ftscale.tasks.rows import left_out

CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": {"x": [1, {"y": None}]}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "enum": ["a"]}}, "required": ["x"]},
        "return": {"type": "number"},
    },
}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "content": "1", "name": "f", "tool_call_id": "1"},
        {"role": "assistant", "content": "b"},
    ],
    "tools": [TOOL],
}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"}
ALPACA = {"instruction": "a", "input": "b", "output": "c"}
TURNS = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
CHATS = (CHAT, SHAREGPT, ALPACA, TURNS, {"prompt": "a", "completion": "b"}, {"text": "a"})

TASKS: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "single_label": ({"name": "text_classification"}, ({"text": "a", "text_pair": "b", "label": "x"},)),
    "multi_label": (
        {"name": "text_classification", "problem": "multi_label"},
        ({"text": "a", "label": ["x", "y"]}, {"text": "a", "label": "x,y"}),
    ),
    "regression": ({"name": "text_classification", "problem": "regression"}, ({"text": "a", "label": 0.5},)),
    "token_classification": ({"name": "token_classification"}, ({"words": ["a", "b"], "tags": ["O", "B-x"]},)),
    "causal_lm": ({"name": "causal_lm", "chat_template": "chatml"}, CHATS),
    "embedding": ({"name": "embedding", "loss": "infonce"}, ({"anchor": "a", "positive": "b", "negative": ["c"]},)),
    "embedding-scores": ({"name": "embedding", "loss": "cosent"}, ({"text": "a", "text_pair": "b", "score": 0.5},)),
    "reranking": ({"name": "reranking", "loss": "listwise"}, ({"anchor": "a", "positive": "b", "negative": ["c"]},)),
    "multiple_choice": (
        {"name": "multiple_choice"},
        (
            {"context": "c", "question": "a", "choices": ["x", "y"], "label": 0},
            {"question": "a", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "label": "B"},
            {"question": "a", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}], "label": "y"},
        ),
    ),
    "seq2seq": ({"name": "seq2seq"}, ({"source": "a", "target": "b"},)),
}


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Any:
    return Text().load_processor(ModelConfig(name=str(shared / "weights/stories260K")))


def rows_like(example: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The row with some of it otherwise; or of its columns, each with anything."""
    columns = st.fixed_dictionaries({}, optional=dict.fromkeys(example, json_values))
    return altered(example) | altered(example).flatmap(altered) | columns


@budget(150)
@given(st.one_of(*map(rows_like, CHATS)))
def test_a_chat_of_any_json_becomes_messages_or_is_refused(row: dict[str, Any]):
    with refused():
        for message in normalize(row):
            assert isinstance(message["role"], str)
            assert isinstance(message["content"], str)
    with refused():
        row_tools(row)


@pytest.mark.parametrize("template", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_a_chat_of_any_json_is_written_by_every_template_or_refused(tokenizer: Any, template: str):
    text = read_template(template)

    @budget(12)
    @given(st.one_of(*map(rows_like, (CHAT, SHAREGPT))))
    def write(row: dict[str, Any]) -> None:
        with refused():
            encode_row_prompt(row, tokenizer, template=text)

    write()


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_any_json_are_prepared_for_every_task_or_refused(tokenizer: Any, tmp_path: Path, task: str):
    settings, examples = TASKS[task]
    rows_of: Callable[[], Any] = lambda: st.one_of(*map(rows_like, examples))  # noqa: E731
    source = {"path": str(tmp_path / "rows.jsonl")}
    about = {"task": settings, "model": "m", "run_folder": "r", "data": {"train": source}}

    @budget(15)
    @given(st.lists(rows_of() | st.sampled_from(examples), min_size=1, max_size=3), st.booleans(), st.booleans())
    def prepare(rows: list[dict[str, Any]], drops: bool, labelled: bool) -> None:
        (tmp_path / "rows.jsonl").write_bytes(b"".join(as_json(row) + b"\n" for row in rows))
        drop = {"drop": ["missing", "blank"]} if drops else {}
        config = parse_config({**about, "data": {"train": {**source, **drop}}}, source="test")
        with refused():
            absent = () if labelled else config.task.label_columns
            found = list(read_rows(config.data.train[0], roles=config.task.columns, absent=absent))
            learned = build_task(config.task).fit(row for row in found if not left_out(config.task, row))
            built = build_task(config.task.model_copy(update=learned), tokenizer)
            samples = Preparer(built, labelled=labelled)(found)
            assert all(isinstance(sample.cost, int) for sample in samples)

    prepare()


def test_rows_of_images_of_any_json_are_prepared_or_refused(tmp_path: Path):
    from PIL import Image
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    example = {"image": "a.png", "label": "x"}
    source = {"path": str(tmp_path / "rows.jsonl")}
    about = {"task": "image_classification", "model": "m", "run_folder": "r", "data": {"train": source}}
    config = parse_config(about, source="test")

    @budget(20)
    @given(st.lists(rows_like(example) | st.just(example), min_size=1, max_size=2))
    def prepare(rows: list[dict[str, Any]]) -> None:
        (tmp_path / "rows.jsonl").write_bytes(b"".join(as_json(row) + b"\n" for row in rows))
        with refused():
            found = list(read_rows(config.data.train[0], roles=config.task.columns))
            learned = build_task(config.task).fit(found)
            Preparer(build_task(config.task.model_copy(update=learned), processor))(found)

    prepare()
