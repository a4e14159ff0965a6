from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ftscale.config.schema import DistributedConfig
from ftscale.distributed import Distributed
from ftscale.train.checkpoint import (
    complete_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)


@pytest.fixture
def distributed():
    made = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=1.0)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    made.prepare(
        module,
        torch.optim.AdamW([weight for weight in module.parameters() if weight.requires_grad]),
        unused_weights=False,
    )
    yield made
    made.close()


def step(distributed: Distributed) -> float:
    distributed.backward(distributed.module(torch.randn(8, 4)).square().sum(), last=True)
    return distributed.step()


def save(root: Path, distributed: Distributed, number: int):
    return save_checkpoint(root, distributed, step=number, progress={"loop": number}, digest="d", versions={})


def test_weights_optimizer_buffers_and_random_numbers_come_back(tmp_path, distributed):
    step(distributed)
    checkpoint = save(tmp_path, distributed, 1)
    expected = [step(distributed) for _ in range(3)]
    weights = {name: value.clone() for name, value in distributed.module.state_dict().items()}
    load_checkpoint(checkpoint, distributed)
    assert [step(distributed) for _ in range(3)] == expected
    assert all(torch.equal(value, weights[name]) for name, value in distributed.module.state_dict().items())


def test_frozen_weights_are_not_written(tmp_path, distributed):
    checkpoint = save(tmp_path, distributed, 1)
    stored = torch.load(checkpoint.folder / "state.pt", weights_only=True)["weights"]
    assert "0.weight" not in stored
    assert {"0.bias", "2.weight", "1.running_mean"} <= stored.keys()


def damage(folder: Path, how: str) -> None:
    state = folder / "state.pt"
    if how == "truncated":
        state.write_bytes(state.read_bytes()[:-10])
    elif how == "flipped":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif how == "missing":
        state.unlink()
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text('{"step": ')


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "no manifest", "torn manifest"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, distributed, how):
    save(tmp_path, distributed, 1)
    damage(save(tmp_path, distributed, 2).folder, how)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    assert (tmp_path / "incomplete" / "step-00000002").is_dir()
    assert [item.step for item in complete_checkpoints(tmp_path)] == [1]


def test_a_half_written_folder_is_no_checkpoint(tmp_path, distributed):
    folder = tmp_path / ".step-00000003.partial"
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    assert save(tmp_path, distributed, 3).step == 3
    assert json.loads((tmp_path / "step-00000003" / "manifest.json").read_text())["world_size"] == 1


def test_the_newest_and_the_best_are_kept(tmp_path, distributed):
    for number in (1, 2, 3, 4, 5):
        save(tmp_path, distributed, number)
    prune_checkpoints(tmp_path, keep=2, best=2)
    assert [item.step for item in complete_checkpoints(tmp_path)] == [2, 4, 5]
