"""What benchmarks/one_number.py compares: cuts in which every two values meet, and by how much two runs differ."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import one_number  # noqa: E402


def test_every_two_values_meet_and_the_first_cut_is_one_process_and_one_micro_batch():
    axes = (("flat", "padded"), one_number.MICRO_SIZES, one_number.WORLDS, one_number.STOPS)
    cuts = one_number.pairs(*axes)
    assert cuts[0] == one_number.Cut("flat", one_number.GLOBAL_SIZE, ("single", 1), False)
    values = [(cut.layout, cut.micro_size, cut.world, cut.is_resumed) for cut in cuts]
    for one, other in itertools.combinations(range(len(axes)), 2):
        assert {(cut[one], cut[other]) for cut in values} == set(itertools.product(axes[one], axes[other]))
    assert len(cuts) < 16  # of 48


def test_a_difference_is_relative_to_the_first_run_and_to_what_it_learned(tmp_path: Path):
    reference = write(tmp_path / "reference", losses=[2.0] * one_number.STEPS, weights=[1.0, 4.0])
    other = write(tmp_path / "other", losses=[2.0] * (one_number.STEPS - 1) + [2.5], weights=[1.0, 3.0])
    untrained = write(tmp_path / "untrained", losses=[2.0], weights=[4.0, 0.0])
    found = one_number.differences(other, reference, untrained)
    assert found == {"loss": 0.25, "grad_norm": 0.0, "weights": pytest.approx(1 / 5)}  # of (3, 4), which is 5 long


def write(folder: Path, *, losses: list[float], weights: list[float]) -> Path:
    (folder / "model").mkdir(parents=True)
    steps = [{"kind": "train", "loss": loss, "grad_norm": 3.0} for loss in losses]
    lines = [*steps, {"kind": "eval", "loss": 9.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_file({"weight": torch.tensor(weights)}, folder / "model/model.safetensors")
    return folder
