"""A run that an older ftscale began goes on: its checkpoints, its run folder and its prepared data's place are kept.

`old_run` was made by the last ftscale whose samples and batches were dicts: a tiny BERT on 40 rows, killed in its
seventh step. `whole.jsonl` is what the unbroken run wrote. All paths in it are relative.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftscale.config import load_config
from ftscale.run.train import train

OLD = Path(__file__).with_name("old_run")
EXACT = ("kind", "step", "lr", "tokens", "targets", "rows_hash", "accuracy")
NEAR = ("loss", "grad_norm")  # another processor rounds in another way


def test_a_checkpoint_of_older_code_goes_on_as_the_unbroken_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    result = train(load_config("run.yaml"), resume=True)
    assert (result.status, result.steps, result.best["step"]) == ("completed", 10, 5)
    resumed, whole = _lines(tmp_path / "run/metrics.jsonl"), _lines(tmp_path / "whole.jsonl")
    assert [{name: line.get(name) for name in EXACT} for line in resumed] == [
        {name: line.get(name) for name in EXACT} for line in whole
    ]
    for name in NEAR:
        expected = [line[name] for line in whole if name in line]
        assert [line[name] for line in resumed if name in line] == pytest.approx(expected, rel=1e-3)


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] in ("train", "eval")]
