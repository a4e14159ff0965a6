"""Records of scored rows: what stands in them is what plain transformers says of the same rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ftscale.train.row_records import record_path


def test_each_evaluation_notes_its_rows_as_transformers_sees_them(shared: Path, tmp_path: Path):
    changes = {"evaluation": {"every": 2, "before": True, "keep_best": False}}
    values = tiny.settings(shared, tmp_path, **changes)
    values["data"]["test"] = {**values["data"]["eval"], "limit": 12}
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
        assert record["length"] == inputs["input_ids"].shape[1]
    assert sum(record["input"] is not None for record in records) == 32
    [scores] = [
        line for line in tiny.metrics(folder) if line["kind"] == "eval" and line["step"] == 3 and "accuracy" in line
    ]
    assert scores["accuracy"] == pytest.approx(sum(record["prediction"] == record["label"] for record in records) / 32)
