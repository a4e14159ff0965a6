"""The examples of docs/data.md: their rows are read as the page says, checked, and trained on."""

from __future__ import annotations

import contextlib
import csv
import gzip
import zipfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import openpyxl
import pages
import pytest
import tiny
from transformers import T5Config

from ftscale.checks import check_run
from ftscale.config import parse_config
from ftscale.config.yaml_text import read_yaml
from ftscale.data.sources import read_rows
from ftscale.run.train import train

SERVER = "https://"
"""Of servers on the page, for which the memory of fsspec stands."""
PAGE = tiny.ROOT / "docs/data.md"


@dataclass
class Example:
    """Files by their names, and the settings that train on them."""

    files: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def _examples() -> dict[str, Example]:
    """The examples of the page, by the first file of each."""
    found, example = {}, Example()
    for block in pages.blocks(PAGE):
        if block.title:
            example.files[block.title] = block.text
        elif block.language == "yaml" and example.files:
            example.settings = read_yaml(block.text.replace(SERVER, "memory://"), source="docs/data.md")
            found[next(iter(example.files))] = example
            example = Example()
    return found


EXAMPLES = _examples()
FIRST: dict[str, tuple[int, dict[str, Any]]] = {
    "questions.label": (4, {"text": "When was Z\u00fcrich founded ?", "label": "NUM"}),
    "reviews.txt": (4, {"text": "The soup was hot and the staff were kind .", "label": "good"}),
    "topics.txt": (
        4,
        {"text": "The bread is good and costs little .", "label": "__label__food __label__price "},
    ),
    "rt-polarity.pos": (2, {"text": "a warm and funny film .", "label": "pos"}),
    "reviews/pos/1.txt": (3, {"text": "too long by half .", "label": "neg"}),
    "mails/spam/1.txt": (3, {"text": "Subject: Monday\n\nThe meeting is at nine.\nBring the map.", "label": "ham"}),
    "tales/1.md": (
        2,
        {"text": "# The miller\n\nOnce upon a time there was a miller.\n\nHe had three sons."},
    ),
    "intents.json": (3, {"text": "what is on my card", "label": "balance"}),
    "news.json": (3, {"source": "The market opens at six.", "target": "Le march\u00e9 ouvre \u00e0 six heures."}),
    "problems.json": (3, {"prompt": "Ann has 3 apples and buys 2. How many has she? ", "completion": 5.0}),
    "pairs.tsv": (4, {"label": "4.2", "text": "A man plays a guitar.", "text_pair": "A man is playing music."}),
    "flights.tsv": (3, {"words": "flights from oslo to rome", "tags": "O O B-from O B-to"}),
    "comments.csv": (4, {"text": "You are a fool", "label": ["rude"]}),
    "meals.jsonl": (
        3,
        {"source": "name[Aldo], food[Thai]", "target": ["Aldo has Thai food.", "Thai is served at Aldo."]},
    ),
    "tests.csv": (
        3,
        {"source": "name[Aldo], food[Thai]", "target": ["Aldo has Thai food.", "Thai is served at Aldo."]},
    ),
    "labels.txt": (3, {"text": "my card is lost", "label": "0"}),
    "https://data.example.org/letters/1.csv": (2, {"text": "the bridge is closed", "label": "traffic"}),
    "calls.xlsx": (3, {"text": "my card is lost", "label": "card"}),
    "films.zip/films/train.csv": (3, {"text": "a warm and funny film", "label": "good"}),
    "rates.jsonl.gz": (3, {"text": "a room with a view", "label": 5}),
}
"""Rows of the first training source, and the first of them."""
DROPPED = {"pairs.tsv": {"unlabelled": 1}}


def test_every_example_of_the_page_is_tried():
    assert EXAMPLES.keys() == FIRST.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_checked_and_trained(shared: Path, tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    example = EXAMPLES[name]
    values = _settings(shared, tmp_path, example)
    source = values["data"]["train"]
    encoding = source.get("encoding", "utf-8") if isinstance(source, dict) else "utf-8"
    for path, content in example.files.items():
        _write(Path(path), content.encode(encoding))
    config = parse_config(values, source="docs/data.md")
    rows = list(read_rows(config.data.train[0], roles=config.task.roles))
    count, first = FIRST[name]
    assert (len(rows), {role: value for role, value in rows[0].items() if role[0] != "_"}) == (count, first)
    report = check_run(tiny.write_run(tmp_path, values))
    assert report.errors == []
    assert report.facts["data"]["train"].get("dropped", {}) == DROPPED.get(name, {})
    train(config)
    assert [step["step"] for step in tiny.steps(tmp_path / "run")] == [1, 2]


def _write(path: Path, content: bytes) -> None:
    """A file of the page, in a form that a page cannot show where its name says so."""
    if path.parts[0] == SERVER[:-2]:
        fsspec.filesystem("memory").pipe(str(path).replace(str(Path(SERVER)), "/"), content)
        return
    archive = next((folder for folder in path.parents if folder.suffix == ".zip"), None)
    if archive is not None:
        with zipfile.ZipFile(archive, "a") as packed:
            packed.writestr(path.relative_to(archive).as_posix(), content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in csv.reader(content.decode().splitlines()):
            book.active.append([_cell(text) for text in row])
        book.save(path)
        return
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _cell(text: str) -> Any:
    """A number or a date as Excel holds it, else the text."""
    for kind in (float, datetime.fromisoformat):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _settings(shared: Path, work: Path, example: Example) -> dict[str, Any]:
    """The example's settings with a small model, and two steps of it."""
    task = example.settings["task"]
    kind = task if isinstance(task, str) else task["name"]
    model: dict[str, Any] = {"name": str(shared / "weights/stories260K")}
    if kind == "seq2seq":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        T5Config(vocab_size=32128, decoder_start_token_id=0, **sizes).save_pretrained(work / "t5")
        model = {"name": str(work / "t5"), "init": "random", "processor": str(shared / "weights/tokenizers/t5")}
    data = {**example.settings["data"], "cache_dir": str(work / "cache")}
    batch = {"global_size": 2}
    return tiny.settings(shared, work, task=task, model=model, data=data, batch=batch, train={"max_steps": 2})
