"""Advice is tested by following it: what a message says to set is set, and reading gets further, up to the rows."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.overrides import apply_overrides
from ftscale.run.prepared_data import prepare_inputs

CSV = "text,label\na fine film,good\nan endless mess,bad\n"
HERE = r"data\.train\[0\]"
ADVICE: tuple[tuple[str, Callable[[re.Match[str]], list[str]]], ...] = (
    # a setting with its value: `set data.train[0].columns={text: 0}`, `set data.train[0].encoding: utf-16`
    (rf"({HERE}[.\w]*)=(\{{[^}}]*\}}|[\w-]+)\.", lambda found: [f"{found[1]}={found[2]}"]),
    (rf"set ({HERE}[.\w]*): (\{{[^}}]*\}}|[\w-]+(?=[ ,.;])(?!\?))", lambda found: [f"{found[1]}={found[2]}"]),
    (r"(?:set|, set) (drop|missing_values): (\[[^\]]*\])", lambda found: [f"data.train[0].{found[1]}={found[2]}"]),
    (r"name (?:all classes|their classes|the tags).* in task\.labels", lambda found: ["task.labels=LABELS"]),
    # another value of the setting that the message begins with
    (rf"^({HERE}\.\w+(?:\.\w+)?) = .*did you mean '([^']+)'\?", lambda found: [f"{found[1]}={found[2]}"]),
    (rf"^({HERE}\.\w+) = .*which has the splits (\w+)", lambda found: [f"{found[1]}={found[2]}"]),
    (
        rf"^({HERE}\.columns)\.(\w+) is no column .*did you mean (\w+)\?",
        lambda found: [f"{found[1]}={{{found[3]}: NAME}}"],
    ),
    (rf"^({HERE}\.\w+) = .*; leave it out", lambda found: [f"{found[1]}=null"]),
)


TEXTS, LABELS = ["a", "b", "c"], ["x", "y", "x"]
LINES = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
GAP = LINES + '{"text": NaN, "label": "y"}\n'


def _parquet(*names: str) -> bytes:
    columns = [pyarrow.array(LABELS if name == "label" else TEXTS) for name in names]
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), sink)
    return sink.getvalue()


def _archive(*names: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        for name in names:
            made.writestr(name, CSV)
    return archive.getvalue()


@dataclass(frozen=True)
class Case:
    """A mistake: the files that are there, the path that is written, and the other settings of the source."""

    files: dict[str, str | bytes]
    path: str
    settings: dict[str, Any] = field(default_factory=dict)


def _one(name: str, content: str | bytes, **settings: Any) -> Case:
    return Case({name: content}, name, settings)


SPLITS = {"set/train.csv": CSV, "set/test.csv": CSV}
CASES = {
    "parquet with two columns of one name": _one("a.parquet", _parquet("text", "label", "text")),
    "both columns twice": _one("a.parquet", _parquet("text", "label", "text", "label")),
    "csv with two columns of one name": _one("a.csv", "text,label,label\na,x,y\nb,y,x\n"),
    "other names of columns": _one("a.csv", CSV.replace("text,label", "txt,labels")),
    "no names of columns": _one("a.csv", CSV.partition("\n")[2], header=False),
    "a column that is misspelt": _one("a.csv", CSV, columns={"text": "txet"}),
    "a column of json that is misspelt": _one("a.jsonl", LINES, columns={"label": "lbel"}),
    "a role that is misspelt": _one("a.csv", CSV, columns={"lbel": "label"}),
    "utf-16": _one("a.csv", CSV.encode("utf-16")),
    "utf-16 without a mark": _one("a.csv", CSV.encode("utf-16-be")),
    "parquet called csv": _one("a.csv", _parquet("text", "label")),
    "a document of lists": _one("a.json", '{"train": [["a", "x"], ["b", "y"]], "val": [["c", "y"]]}'),
    "a place of rows that is misspelt": _one(
        "a.json", f'{{"train": [{LINES.strip().replace(chr(10), ",")}]}}', rows="trains"
    ),
    "rows of what is no document": _one("a.jsonl", LINES, rows="train"),
    "a path that begins misspelt": _one(
        "a.jsonl",
        LINES.replace('"a"', '{"en": "a"}').replace('"b"', '{"en": "b"}'),
        columns={"text": "txet.en"},
    ),
    "a pattern that is not used": _one("a.csv", CSV, pattern="(?P<text>.+)"),
    "a list called jsonl": _one("a.jsonl", f"[\n{LINES.strip().replace(chr(10), ',' + chr(10))}\n]"),
    "a path that is misspelt": Case({"train.csv": CSV}, "traim.csv"),
    "a folder that is misspelt": Case({"raw/train.csv": CSV}, "rawe/train.csv"),
    "an archive of splits": _one("a.zip", _archive("train.csv", "test.csv")),
    "a file of an archive that is misspelt": Case({"a.zip": _archive("train.csv")}, "a.zip/traim.csv"),
    "a format that is misspelt": _one("a.csv", CSV, format="cvs"),
    "splits to choose from": Case(SPLITS, "set"),
    "a split that is misspelt": Case(SPLITS, "set", {"split": "trains"}),
    "a split of a file": _one("a.csv", CSV, split="test"),
    "a separator of json": _one("a.jsonl", LINES, separator=";"),
    "a missing text": _one("a.jsonl", GAP),
    "a missing class": _one("a.csv", f"{CSV}so so,\n"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_message_says_to_set_leads_to_the_rows(shared, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    files, path, settings = CASES[case].files, CASES[case].path, CASES[case].settings
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    values = tiny.settings(shared, tmp_path, data={"train": [{"path": path, **settings}], "cache_dir": "cache"})
    told: list[str] = []
    while (problem := _problem(values)) is not None:
        assert problem not in told, f"the advice changes nothing: {problem}"
        told.append(problem)
        values = apply_overrides(values, _followed(problem, values["data"]["train"][0].get("columns", {})))
    assert told, "this was a mistake"


def _problem(values: dict[str, Any]) -> str | None:
    """The first message about a run; None where its rows can be prepared."""
    try:
        assert len(prepare_inputs(parse_config(values, source="x")).train) >= 2
    except UserError as error:
        return error.problems[0].removeprefix("x: ")
    return None


def test_multi_label_vectors_are_read_by_the_labels_that_the_message_asks_for(shared, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": [1, 0, 1]}\n{"text": "b", "label": [0, 1, 0]}\n')
    task = {"name": "text_classification", "problem": "multi_label"}
    data = {"train": f"{tmp_path}/a.jsonl", "cache_dir": f"{tmp_path}/cache"}
    values = tiny.settings(shared, tmp_path, task=task, data=data)
    [override] = _followed(_problem(values), {})
    values = apply_overrides(values, [override.replace("LABELS", "[p, q, r]")])
    assert prepare_inputs(parse_config(values, source="x")).train.labels[:] == [[0, 2], [1]]


def _followed(message: str, columns: dict[str, Any]) -> list[str]:
    """The overrides that a message asks for, as they are typed on a command line."""
    for pattern, override in ADVICE:
        if found := re.search(pattern, message):
            name = str(next(iter(columns.values()), ""))
            return [text.replace("[0]", ".0", 1).replace("NAME", name) for text in override(found)]
    raise AssertionError(f"no advice in: {message}")
