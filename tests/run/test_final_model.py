"""How a run ends: what proves the saved model are rows that were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

EMPTY = [{"prompt": "", "completion": ""}, {"prompt": "once", "completion": ""}] * 2
ROWS = EMPTY + [{"prompt": "once upon", "completion": f" a time {number}"} for number in range(12)]
TEXTS = [{"text": ""}] * 4 + [{"text": f"once upon a time {number}"} for number in range(12)]
PARTS = {"prepared": (TEXTS, {}), "stream": (ROWS, {"streaming": True}), "eval": (ROWS, {"eval": True})}


@pytest.mark.parametrize(("rows", "part"), PARTS.values(), ids=PARTS)
def test_rows_without_a_target_at_the_start_of_a_file_prove_nothing(
    shared: Path, tmp_path: Path, rows: list[dict[str, str]], part: dict[str, Any]
):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl"), "max_empty": 0.5, "cache_dir": str(tmp_path / "cache"), **part}
    data["eval"] = data["train"] if part.get("eval") else []
    settings = tiny.settings(shared, tmp_path, task={"name": "causal_lm"}, data=data, checkpoint={"prove": "final"})
    settings["train"] = {"max_steps": 1}
    outcome = tiny.command("train", tiny.write_run(tmp_path, settings))
    assert outcome.code == 0, outcome.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "completed"
    assert any(line.get("event") == "proved" for line in tiny.metrics(tmp_path / "run"))
