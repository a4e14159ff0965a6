"""A run folder as a run leaves it, with figures and texts of one's choice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ftscale.base.sealed import write_json
from ftscale.config import parse_config, write_config
from ftscale.report.facts import DATA_REPORT
from ftscale.train.row_records import record_path

SETTINGS = {"task": "text_classification", "model": "a-model", "data": {"train": "train.csv", "eval": "eval.csv"}}


def write_folder(
    folder: Path,
    losses: Sequence[float] = (),
    held_out: Mapping[int, Mapping[str, float]] | None = None,
    *,
    records: Mapping[str, Sequence[Any]] | None = None,
    result: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    events: Iterable[Mapping[str, Any]] = (),
    **settings: Any,
) -> Path:
    """Steps with these losses, evaluations by their step, and the records of the rows of the last of them."""
    folder.mkdir(parents=True)
    write_config(
        parse_config({**SETTINGS, "run_folder": str(folder), **settings}, source="a test"), folder / "config.yaml"
    )
    about = {"versions": {"ftscale": "1"}, "device": "a device", "world_size": 2, "command": ["ftscale", "train"]}
    write_json(folder / "run.json", {**about, "num_steps": len(losses)})
    lines: list[Mapping[str, Any]] = [
        {"kind": "train", "step": step, "time_s": step, "loss": loss, "lr": 0.1, "tokens": 100, "step_s": 0.5}
        for step, loss in enumerate(losses, 1)
    ]
    lines += [{"kind": "eval", "step": step, "time_s": step, **scores} for step, scores in (held_out or {}).items()]
    lines += [{"kind": "event", "time_s": 0, **event} for event in events]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        whole = {"status": "completed", "steps": len(losses), "metrics": {}, "best": None, "duration_s": 90.0}
        write_json(folder / "result.json", {**whole, **result}, seal=False)
    if data is not None:
        write_json(folder / DATA_REPORT, data, seal=False)
    if records is not None:
        path = record_path(folder, "eval", max(held_out or {0: {}}))
        path.parent.mkdir()
        pq.write_table(table(records), path)
    return folder


def table(records: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Records of rows, with what each has filled in."""
    number = len(next(iter(records.values())))
    filled = {
        "where": [f"eval.csv:{line}" for line in range(number)],
        "sample": list(range(number)),
        "length": [10 + place % 7 for place in range(number)],
        "input": [f"text {place}" for place in range(number)],
    }
    return pa.table({**filled, **records})
