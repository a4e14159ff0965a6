"""What an optimizer step's samples know of their place in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ftscale.config.schema import BatchConfig
from ftscale.data.batching import Division, Ranks
from ftscale.data.loader import TrainingSteps
from ftscale.data.sample import Sample

ROWS = np.array([5, 2, 5, 0, 5, 2, 7])
LENGTHS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def drawn(*, micro: int, world_size: int) -> list[tuple[int, int]]:
    """Row and repeat of each sample of a step, over all ranks; fillers are left out."""
    samples: Any = SimpleNamespace(
        costs=LENGTHS, counts={}, sample=lambda row, epoch, seed: Sample(number=row, epoch=epoch, seed=seed)
    )
    order: Any = SimpleNamespace(locate=lambda step: (0, step), epoch=lambda epoch: [ROWS])
    division = Division(BatchConfig(global_size=7, micro_size=micro), flat=True)
    found = []
    for rank in range(world_size):
        ranks = Ranks(rank, world_size)
        steps = TrainingSteps(samples, order, list, division=division, ranks=ranks, seed=0, num_steps=1, num_workers=0)
        batches = [batch for batch, real in steps[0].micro_batches if real]
        found += [(sample.number, sample.repeat) for batch in batches for sample in batch]
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 7])
def test_a_row_that_stands_twice_in_a_step_is_told_apart_in_any_cut(micro: int, world_size: int):
    assert sorted(drawn(micro=micro, world_size=world_size)) == [(0, 0), (2, 0), (2, 1), (5, 0), (5, 1), (5, 2), (7, 0)]
