"""Combinations that work, run here because no other test runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = pytest.mark.slow


def _losses(shared: Path, work: Path, *, checkpointing: bool) -> list[float]:
    settings: dict[str, Any] = tiny.settings(shared, work)
    settings |= {
        "model": {"name": settings["model"], "quantization": "nf4"},
        "adapter": {"method": "lora", "r": 4, "lora_dropout": 0.0, "target_modules": "all-linear"},
        "train": {"max_steps": 3, "precision": "bf16", "activation_checkpointing": checkpointing},
    }
    outcome = tiny.command("train", tiny.write_run(work, settings))
    assert outcome.code == 0, outcome.stderr
    return [line["loss"] for line in tiny.steps(work / "run")]


def test_a_quantised_base_learns_the_same_with_recomputed_activations(shared: Path, tmp_path: Path):
    plain = _losses(shared, tmp_path / "plain", checkpointing=False)
    assert _losses(shared, tmp_path / "recomputed", checkpointing=True) == pytest.approx(plain, rel=1e-3)
    assert len(set(plain)) == 3
