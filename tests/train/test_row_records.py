"""Records of scored rows: what stands in them is what plain transformers says of the same rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ftscale.train.row_records import cut_row_records, record_path


def test_each_evaluation_notes_its_rows_as_transformers_sees_them(shared: Path, tmp_path: Path):
    changes = {"evaluation": {"every": 2, "before": True, "keep_best": False}}
    values = tiny.settings(shared, tmp_path, **changes)
    values["data"]["test"] = {**values["data"]["eval"], "limit": 12, "set": {"domain": "tests"}}
    values["data"]["eval"]["set"] = {"domain": "films"}
    values["evaluation"]["groups"] = ["domain", "label"]
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    folder = tmp_path / "run"
    names = ["eval-00000000.parquet", "eval-00000002.parquet", "eval-00000003.parquet", "test.parquet"]
    assert sorted(path.name for path in (folder / "rows").iterdir()) == names

    records = pq.read_table(record_path(folder, "eval", 3)).to_pylist()
    lines = Path(values["data"]["eval"]["path"]).read_text().splitlines()[:32]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert [record["where"].rpartition(":")[2] for record in records] == [str(line) for line in range(1, 33)]
    for record, line in zip(records, lines, strict=True):
        text, label = line.split("\t")
        inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        assert record["label"] == label
        assert record["prediction"] == model.config.id2label[int(logits.argmax())]
        assert record["score"] == pytest.approx(float(logits.softmax(dim=-1).max()), abs=1e-4)
        assert record["loss"] == pytest.approx(float(-logits.log_softmax(dim=-1)[int(label)]), abs=1e-4)
        assert (record["group.domain"], record["group.label"]) == ("films", label)
        assert record["length"] == inputs["input_ids"].shape[1]
    assert sum(record["input"] is not None for record in records) == 32
    [scores] = [
        line for line in tiny.metrics(folder) if line["kind"] == "eval" and line["step"] == 3 and "accuracy" in line
    ]
    assert scores["accuracy"] == pytest.approx(sum(record["prediction"] == record["label"] for record in records) / 32)


def test_a_resumed_run_keeps_the_records_up_to_its_checkpoint(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    kept = ["eval-00000002.parquet", "eval-00000004.parquet", "test.parquet"]
    for name in (*kept, "eval-00000006.parquet", ".eval-00000004.parquet.0123.partial"):
        (tmp_path / "rows" / name).touch()
    cut_row_records(tmp_path, after_step=4)
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == kept
    cut_row_records(tmp_path / "no run", after_step=-1)


def test_several_processes_note_what_one_does(shared: Path, tmp_path: Path):
    tables = []
    for processes in (1, 2):
        work = tmp_path / str(processes)
        changes = {"batch": {"global_size": 8, "micro_size": 2}, "train": {"max_steps": 2}}
        file = tiny.write_run(work, tiny.settings(shared, work, **changes))
        assert tiny.forked("train", file, processes=processes).code == 0
        tables.append(pq.read_table(record_path(work / "run", "eval", 2)).to_pylist())
    for one, two in zip(*tables, strict=True):
        assert one.keys() == two.keys()
        assert (one["where"], one["label"], one["prediction"]) == (two["where"], two["label"], two["prediction"])
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_other_rows_need_no_column_that_groups_are_made_of(shared: Path, tmp_path: Path):
    """Neither to be scored nor to be predicted on; the run's own do."""
    values = tiny.settings(shared, tmp_path, train={"max_steps": 1}, evaluation={"groups": ["domain"]})
    refused = tiny.command("train", tiny.write_run(tmp_path, values))
    assert (refused.code, "has no column for 'domain'" in refused.stderr) == (2, True)
    values["data"]["eval"]["set"] = {"domain": "films"}
    assert tiny.command("train", tiny.write_run(tmp_path, values)).code == 0
    other = tmp_path / "other.tsv"
    other.write_text("a fine film\t1\na dull one\t0\n")
    for command in (("evaluate", tmp_path / "run", "--data", other), ("evaluate", tmp_path / "run")):
        outcome = tiny.command(*command)
        assert outcome.code == 0, outcome.stderr
    outcome = tiny.command("predict", tmp_path / "run", other)
    assert outcome.code == 0, outcome.stderr
