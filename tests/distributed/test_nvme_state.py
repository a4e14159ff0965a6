"""What a disk keeps of zero3_nvme is data: nothing in it is run. How it trains: tests/strategies/test_nvme.py."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftscale.base.errors import UserError
from ftscale.distributed.nvme_state import load_swapped

SCALER = {"cur_scale": 1.0}


class Planted:
    """What makes a folder where it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def engine() -> Any:
    """As much of a DeepSpeed engine as is loaded into: one sub-group, which never leaves the memory."""
    weight = torch.nn.Parameter(torch.zeros(2))
    zero = SimpleNamespace(
        fp32_partitioned_groups_flat=[weight],
        fp16_partitioned_groups_flat_numel=[2],
        optimizer_swapper=SimpleNamespace(is_swappable_tensor=lambda numel: False),
        state={weight: {}},
        param_groups=[{"params": [weight], "lr": 0.0}],
        loss_scaler=SimpleNamespace(**SCALER),
        checkpoint_event_prologue=lambda: None,
        checkpoint_event_epilogue=lambda: None,
        _reassign_or_swap_out_partitioned_parameters=lambda number: None,
    )
    return SimpleNamespace(optimizer=zero, module=torch.nn.Linear(1, 1))


@pytest.mark.parametrize("where", ["nowhere", "sub-group-00000.pt", "rest.pt"])
def test_planted_code_is_refused_and_not_run(tmp_path: Path, where: str):
    contents: dict[str, Any] = {
        "sub-group-00000.pt": {"weight": torch.tensor([1.0, 2.0]), "state": {"step": 3}},
        "rest.pt": {"buffers": {}, "settings": [{"lr": 0.5}], "loss_scaler": SCALER},
    }
    (tmp_path / "rank-00000").mkdir()
    for name, content in contents.items():
        more = {"more": Planted(tmp_path / "ran")} if name == where else {}
        torch.save(content | more, tmp_path / "rank-00000" / name)
    loaded = engine()
    if where == "nowhere":
        load_swapped(loaded, tmp_path, rank=0)
        [weight] = loaded.optimizer.fp32_partitioned_groups_flat
        assert (weight.tolist(), loaded.optimizer.param_groups[0]["lr"]) == ([1.0, 2.0], 0.5)
        return
    with pytest.raises((pickle.UnpicklingError, UserError)):
        load_swapped(loaded, tmp_path, rank=0)
    assert not (tmp_path / "ran").exists()
