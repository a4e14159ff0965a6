"""A missing value is one thing, whatever writes it and wherever it stands; and rows that are likely mistakes."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.checks import check_run
from ftscale.config import parse_config
from ftscale.config.schema import SourceConfig
from ftscale.config.tasks import SETTINGS
from ftscale.data.census import content_of, contradicting, odd_labels, repeated, shared
from ftscale.data.missing import is_missing, with_none
from ftscale.data.prepare import Prepared
from ftscale.data.sources import open_stream, read_rows
from ftscale.run.prepared_data import prepare_inputs
from ftscale.run.train import train
from ftscale.tasks.rows import text_of

MISSING = [None, math.nan, np.float32("nan"), np.float64("nan"), decimal.Decimal("NaN"), pandas.NA, pandas.NaT]
MISSING.append(np.datetime64("NaT"))
VALUES = ["", "nan", 0, 0.0, False, [], {}, b"", math.inf, np.float32(0), np.bool_(False), datetime.date(2020, 1, 1)]
VALUES += [np.array([math.nan])]


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_every_kind_of_missing_value_is_missing_in_any_depth(value):
    assert is_missing(value)
    assert with_none(value) is None
    assert with_none({"a": [value, 1]}) == {"a": [None, 1]}
    with pytest.raises(UserError, match=r"x:3: text = .* must be a text; mend the row, set drop: \[missing\]"):
        text_of({"text": value, "_where": "x:3"}, "text")


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_other_values_are_not_missing(value):
    assert not is_missing(value)


def _write(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> str:
    """Rows whose missing values are NaN in JSON, nulls or NaN in Parquet, and empty in CSV."""
    path = folder / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "csv":
        pandas.DataFrame(rows).to_csv(path, index=False)
    else:
        nan = [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in (nan if suffix == "nan.jsonl" else rows)))
    return str(path)


CHAT = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "me"}]
WORDS = {"words": ["Ada", "wrote"], "tags": ["B-PER", "O"]}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "text": ({"name": "text_classification"}, {"text": "a", "label": "x"}, "text"),
    "text of a pair": ({"name": "text_classification"}, {"text": "a", "text_pair": "b", "label": "x"}, "text_pair"),
    "class": ({"name": "text_classification"}, {"text": "a", "label": "x"}, "label"),
    "number": ({"name": "text_classification", "problem": "regression"}, {"text": "a", "label": 0.5}, "label"),
    "words": ({"name": "token_classification"}, WORDS, "words"),
    "tags": ({"name": "token_classification"}, WORDS, "tags"),
    "plain text": ({"name": "causal_lm"}, {"text": "once upon"}, "text"),
    "prompt": ({"name": "causal_lm"}, {"prompt": "a", "completion": "b"}, "prompt"),
    "completion": ({"name": "causal_lm"}, {"prompt": "a", "completion": "b"}, "completion"),
    "instruction": (
        {"name": "causal_lm", "chat_template": "alpaca"},
        {"instruction": "a", "input": "", "output": "b"},
        "instruction",
    ),
    "output": (
        {"name": "causal_lm", "chat_template": "alpaca"},
        {"instruction": "a", "input": "", "output": "b"},
        "output",
    ),
    "chat": ({"name": "causal_lm", "chat_template": "alpaca"}, {"messages": CHAT}, "messages"),
}


def _config(shared: Path, work: Path, task: dict[str, Any], path: str, **source: Any) -> Any:
    values = tiny.settings(
        shared, work, task=task, data={"train": {"path": path, **source}, "cache_dir": str(work / "cache")}
    )
    return parse_config(values, source="test")


def places(prepared: Prepared) -> list[str]:
    """Where the row of each sample was read."""
    return [prepared.where(number) for number in range(len(prepared))]


@pytest.mark.parametrize("suffix", ["jsonl", "nan.jsonl", "parquet"])
@pytest.mark.parametrize("case", CASES)
def test_a_row_without_a_value_is_refused_by_name_or_left_out_and_counted(shared, tmp_path, case, suffix):
    task, row, role = CASES[case]
    rows = [{**row, "label": "xy"[number % 2]} if row.get("label") == "x" else dict(row) for number in range(6)]
    rows[2] = {**rows[2], role: None}
    path = _write(tmp_path, suffix, rows)
    with pytest.raises(UserError) as caught:
        prepare_inputs(_config(shared, tmp_path, task, path))
    assert role in str(caught.value)
    assert f"{path}{' row 3' if suffix == 'parquet' else ':3'}: " in str(caught.value)
    prepared = prepare_inputs(_config(shared, tmp_path, task, path, drop=["missing"])).train
    assert (len(prepared), prepared.reports[0].read, prepared.reports[0].dropped) == (5, 6, {"missing": 1})


def test_empty_cells_of_a_table_are_blank_texts_and_missing_classes(shared, tmp_path):
    rows = [
        {"text": text, "label": label} for text, label in (("a", "x"), (None, "y"), (" ", "x"), ("b", None), ("c", "y"))
    ] * 3
    path = _write(tmp_path, "csv", rows)
    task = {"name": "text_classification"}
    with pytest.raises(UserError, match=r"rows\.csv:5: label = '' must be a class; mend the row, set drop"):
        prepare_inputs(_config(shared, tmp_path, task, path))
    kept = prepare_inputs(_config(shared, tmp_path, task, path, drop=["missing"])).train
    assert (len(kept), kept.reports[0].blank, kept.reports[0].dropped) == (12, 6, {"missing": 3})
    kept = prepare_inputs(_config(shared, tmp_path, task, path, drop=["missing", "blank"])).train
    assert (len(kept), kept.reports[0].blank, kept.reports[0].dropped) == (6, 0, {"missing": 3, "blank": 6})


def test_texts_that_stand_for_a_missing_value_are_named_by_the_user(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,N/A\nN/A,x\nb,NaN \n")
    rows = read_rows(SourceConfig(path=f"{tmp_path}/a.csv", missing_values=["N/A", "NaN"]), roles=(("text", "label"),))
    assert [(row["text"], row["label"]) for row in rows] == [("a", None), (None, "x"), ("b", None)]
    rows = read_rows(SourceConfig(path=f"{tmp_path}/a.csv"), roles=(("text", "label"),))
    assert [(row["text"], row["label"]) for row in rows] == [("a", "N/A"), ("N/A", "x"), ("b", "NaN ")]


def test_a_key_that_is_not_there_is_a_missing_value(shared, tmp_path):
    rows = [{"text": "a", "text_pair": "b", "label": "xy"[number % 2]} for number in range(6)]
    for number, name in ((1, "text"), (3, "text_pair"), (4, "label")):
        del rows[number][name]
    path, task = _write(tmp_path, "jsonl", rows), {"name": "text_classification"}
    with pytest.raises(UserError, match=r"rows\.jsonl:2 has no column for 'text'"):
        prepare_inputs(_config(shared, tmp_path, task, path))
    prepared = prepare_inputs(_config(shared, tmp_path, task, path, drop=["missing"])).train
    assert [Path(where).name for where in places(prepared)] == ["rows.jsonl:1", "rows.jsonl:3", "rows.jsonl:6"]
    assert prepared.reports[0].dropped == {"missing": 3}
    source = SourceConfig(path=path, drop=["missing"])
    roles = SETTINGS["text_classification"].columns
    items = list(open_stream(source, roles=roles, position=None))
    for number, (_, position) in enumerate(items, 1):
        rest = list(open_stream(source, roles=roles, position=position))
        assert rest == items[number:]


def test_a_number_that_stands_for_a_missing_value_is_named_as_a_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": -1}\n{"text": "-1", "label": 1}\n')
    source = SourceConfig(path=f"{tmp_path}/a.jsonl", missing_values=["-1"])
    rows = read_rows(source, roles=(("text", "label"),))
    assert [(row["text"], row["label"]) for row in rows] == [("a", None), (None, 1)]


def test_a_row_without_any_of_several_classes_is_a_row_of_none(shared, tmp_path):
    rows = [{"text": "a", "label": label} for label in (["x"], None, ["x", "y"], [])]
    task = {"name": "text_classification", "problem": "multi_label"}
    kept = prepare_inputs(_config(shared, tmp_path, task, _write(tmp_path, "nan.jsonl", rows))).train
    assert kept.labels[:] == [[0], [], [0, 1], []]


def test_rows_without_a_label_are_left_out_and_counted_by_themselves(shared, tmp_path):
    path = tmp_path / "sts.tsv"
    path.write_text("".join(f"a {n}\tb {n}\t{score}\n" for n, score in enumerate(("1.5", "", "3.0", " ", "0.0"))))
    task = {"name": "text_classification", "problem": "regression"}
    source = {"header": False, "columns": {"text": 0, "text_pair": 1, "label": 2}}
    with pytest.raises(UserError, match=r"sts\.tsv:2: label = '' must be a number; mend the row, set drop"):
        prepare_inputs(_config(shared, tmp_path, task, str(path), **source))
    for drop in (["unlabelled"], ["missing", "unlabelled"]):
        kept = prepare_inputs(_config(shared, tmp_path, task, str(path), **source, drop=drop)).train
        assert ([float(label) for label in kept.labels], kept.reports[0].dropped) == (
            [1.5, 3.0, 0.0],
            {"unlabelled": 2},
        )


def test_a_label_that_is_no_key_is_missing_and_a_text_that_is_none_is_refused(shared, tmp_path):
    rows = [{"text": "a", "label": "xy"[number % 2]} for number in range(6)]
    del rows[2]["label"]
    task = {"name": "text_classification"}
    path = _write(tmp_path, "jsonl", rows)
    kept = prepare_inputs(_config(shared, tmp_path, task, path, drop=["unlabelled"])).train
    assert (len(kept), kept.reports[0].dropped) == (5, {"unlabelled": 1})
    del rows[3]["text"]
    path = _write(tmp_path, "jsonl", rows)
    with pytest.raises(UserError, match=r"rows\.jsonl:4: text = None must be a text; mend the row"):
        prepare_inputs(_config(shared, tmp_path, task, path, drop=["unlabelled"]))


def test_held_out_rows_are_drawn_among_those_that_are_used(shared, tmp_path):
    rows = [{"text": f"row {number}", "label": "xy"[number % 2]} for number in range(20)]
    rows[3]["label"] = None
    task = {"name": "text_classification"}
    config = _config(shared, tmp_path, task, _write(tmp_path, "jsonl", rows), drop=["missing"])
    data = config.data.model_copy(update={"eval_ratio": 0.25, "stratify": "label"})
    inputs = prepare_inputs(config.model_copy(update={"data": data}))
    assert sorted(places(inputs.train) + places(inputs.evaluation)) == sorted(
        f"{tmp_path}/rows.jsonl:{line}" for line in range(1, 21) if line != 4
    )


# ---------------------------------------------------------------- likely mistakes

ROWS = [
    *({"text": text, "label": label} for text, label in (("a", "x"), ("a", "y"), ("a", "x"), ("b", "x"), ("b", "x"))),
    *({"text": text, "label": "Y"} for text in ("c", " ", "d")),
    {"text": "e", "label": "NaN"},
]


def test_equal_rows_and_equal_texts_with_other_labels_are_counted():
    inputs = SETTINGS["text_classification"]().input_columns
    assert inputs == {"text", "text_pair"}
    contents = np.array([content_of(row, inputs=inputs) for row in ROWS])
    frame = pandas.DataFrame(ROWS)
    assert repeated(contents) == frame.duplicated().sum() == 2
    labels_of = frame.groupby("text")["label"].transform("nunique")
    assert contradicting(contents) == (labels_of > 1).sum() == 3
    assert shared(np.sort(contents[:2, 0]), np.sort(contents[2:, 0])) == 1
    assert content_of({**ROWS[0], "_where": "elsewhere"}, inputs=inputs) == content_of(ROWS[0], inputs=inputs)
    empty = np.empty((0, 2), dtype=np.int64)
    assert (repeated(empty), contradicting(empty), shared(empty[:, 0], contents[:, 0])) == (0, 0, 0)


def test_odd_classes_are_named_with_their_rows():
    sentences = odd_labels({"repair": 4, "Repair": 2, "NaN": 3, "order": 9, "re pair": 1})
    assert sentences[0].startswith("the class 'NaN' (3 rows) is what programs write for a missing value")
    assert sentences[1].startswith("the classes 'repair' (4 rows) and 'Repair' (2 rows) differ in case or white space")
    assert len(sentences) == 2


@pytest.mark.parametrize("full", [False, True])
def test_check_and_train_warn_of_rows_that_are_likely_mistakes(shared, tmp_path, full, caplog):
    path = _write(tmp_path, "csv", ROWS * 2)
    data = {"train": path, "cache_dir": str(tmp_path / "cache")}
    values = tiny.settings(shared, tmp_path, data=data | {"eval_ratio": 0.5})
    report = check_run(tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, data=data)), full=full)
    assert report.errors == []
    facts = report.facts["data"]["train"]
    assert (facts["blank"], facts["contradicting"], facts["duplicates"]) == (2, 6, 11)
    report.warnings += (held_out := check_run(tiny.write_run(tmp_path, values), full=full)).warnings
    inputs = prepare_inputs(parse_config(values, source="test"))
    train = {ROWS_OF[int(where.rpartition(":")[2])] for where in places(inputs.train)}
    held = [ROWS_OF[int(where.rpartition(":")[2])] for where in places(inputs.evaluation)]
    both = sum(text in train for text in held)
    assert held_out.facts["data"]["overlap"] == both > 0
    for said in (
        "data.train: 2 rows have a text of white space alone",
        "data.train: 6 rows have the input of another row and another label",
        f"data.eval_ratio: {both} of 9 rows have the input of a row of data.train too",
        "little about new data; take repeated rows out of data.train",
        "the class 'NaN' (2 rows)",
        "the classes 'Y' (6 rows) and 'y' (2 rows)",
    ):
        assert any(said in sentence for sentence in report.warnings), said
    for said in (
        "rows have the input of another row",
        f"data.eval: {both} of 9 rows have the input",
        "the class 'NaN'",
    ):
        assert said in caplog.text


ROWS_OF = {line: row["text"] for line, row in enumerate(ROWS * 2, 2)}


def test_words_and_tags_that_pandas_wrote_into_a_table_are_lists(shared, tmp_path):
    pandas.DataFrame([WORDS, WORDS]).to_csv(tmp_path / "a.csv", index=False)
    data = {"train": f"{tmp_path}/a.csv", "cache_dir": str(tmp_path / "cache")}
    model = {"name": str(shared / "weights/stories260K"), "processor": str(_bert(shared))}
    values = tiny.settings(shared, tmp_path, task={"name": "token_classification"}, model=model, data=data)
    train_rows = prepare_inputs(parse_config(values, source="test")).train
    assert [train_rows.sample(number).note["tags"] for number in range(2)] == [[0, 2], [0, 2]]
    report = check_run(tiny.write_run(tmp_path, values))
    assert (report.errors, report.rows[0]) == ([], [("Ada ", False), ("B-PER ", True), ("wrote ", False), ("O ", True)])


def test_words_that_give_no_token_are_counted(shared, tmp_path):
    lines = "Ada B-PER\n\u200b O\nwrote O\n\u200b B-PER\n\n" * 3
    (tmp_path / "a.conll").write_text(lines)
    values = tiny.settings(
        shared,
        tmp_path,
        task={"name": "token_classification"},
        model={"name": str(shared / "weights/stories260K"), "processor": str(_bert(shared))},
        data={"train": f"{tmp_path}/a.conll", "cache_dir": str(tmp_path / "cache")},
    )
    inputs = prepare_inputs(parse_config(values, source="test"))
    assert inputs.train.reports[0].lost == 6
    report = check_run(tiny.write_run(tmp_path, values))
    assert report.facts["data"]["train"]["words_without_token"] == 6
    assert any("6 words give no token, so that the model never sees them" in line for line in report.warnings)


def _bert(shared: Path) -> Path:
    return shared / "weights/tokenizers/bert-base-uncased"


def test_a_stream_leaves_rows_out_too(shared, tmp_path):
    rows = [{"text": f"row {number}" if number % 5 else None, "label": "xy"[number % 2]} for number in range(24)]
    data = {
        "train": {"path": _write(tmp_path, "nan.jsonl", rows), "drop": ["missing"]},
        "streaming": True,
        "shuffle": False,
        "cache_dir": str(tmp_path / "cache"),
    }
    train(parse_config(tiny.settings(shared, tmp_path, data=data), source="test"))
    assert [step["targets"] for step in tiny.steps(tmp_path / "run")] == [6, 6, 7]  # of rows 0 to 7, 8 to 15, 16 to 23
