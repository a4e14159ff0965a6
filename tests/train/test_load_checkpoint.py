from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planted import plant

from ftscale.base.errors import UserError
from ftscale.config.schema import DistributedConfig
from ftscale.distributed.runtime import Distributed
from ftscale.train.checkpoint import load_checkpoint, load_more
from ftscale.train.manifest import Checkpoint


@pytest.fixture
def distributed():
    made = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=1.0)
    module = torch.nn.Linear(4, 2)
    made.prepare(module, torch.optim.AdamW(module.parameters()), unused_weights=False)
    yield made
    made.close()


def checkpoint(folder: Path, distributed: Distributed, *, step: int, strategy: str = "ddp") -> Checkpoint:
    """Of two processes, without the random state of either."""
    distributed.save_state(folder, torch.save)
    return Checkpoint(folder, {"step": step, "strategy": strategy, "world_size": 2})


def test_a_rank_that_was_not_there_draws_by_its_seed_and_the_step(tmp_path, distributed):
    def drawn(step: int, seed: int) -> list[float]:
        torch.manual_seed(seed)
        load_checkpoint(checkpoint(tmp_path, distributed, step=step), distributed)
        return torch.rand(4).tolist()

    first = drawn(1, seed=7)
    assert drawn(1, seed=7) == first
    assert drawn(2, seed=7) != first
    assert drawn(1, seed=8) != first


def test_a_checkpoint_of_another_kind_of_strategy_is_refused(tmp_path, distributed):
    with pytest.raises(UserError, match="single cannot go on from .* use zero1 or zero2 or zero3"):
        load_checkpoint(checkpoint(tmp_path, distributed, step=1, strategy="zero2"), distributed)


@pytest.mark.parametrize("name", ["state.pt", "more.pt"])
def test_a_pickle_in_the_place_of_a_file_does_not_run(tmp_path, distributed, name):
    found = checkpoint(tmp_path, distributed, step=1)
    plant(tmp_path / name, tmp_path / "ran")
    with pytest.raises(UserError, match=rf"{name} is not what ftscale writes \(it names"):
        load_more(found) if name == "more.pt" else load_checkpoint(found, distributed)
    assert not (tmp_path / "ran").exists()
