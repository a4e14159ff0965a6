from __future__ import annotations

import numpy as np
import pytest

from ftscale.config.schema import BatchConfig
from ftscale.data.batching import Division

RAGGED = np.random.default_rng(0).integers(3, 120, size=64)


def flatten(ranks):
    return sorted(position for rank in ranks for group in rank for position in group.tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("batch", [BatchConfig(micro_tokens=256), BatchConfig(micro_size=4), BatchConfig()])
def test_every_sample_lies_in_one_micro_batch_and_ranks_have_equally_many(world_size, flat, batch):
    ranks = Division(batch, flat=flat).divide(RAGGED, world_size=world_size)
    assert flatten(ranks) == list(range(64))
    assert len({len(rank) for rank in ranks}) == 1


@pytest.mark.parametrize("flat", [True, False])
def test_no_micro_batch_costs_more_than_the_token_budget(flat):
    ranks = Division(BatchConfig(micro_tokens=256), flat=flat).divide(RAGGED, world_size=2)
    for group in (group for rank in ranks for group in rank if len(group)):
        lengths = RAGGED[group]
        assert (lengths.sum() if flat else lengths.max() * len(lengths)) <= 256


def test_sorting_by_length_leaves_little_padding():
    ranks = Division(BatchConfig(micro_size=8), flat=False).divide(RAGGED, world_size=2)
    padded = sum(RAGGED[group].max() * len(group) for rank in ranks for group in rank)
    random = sum(RAGGED[start : start + 8].max() * 8 for start in range(0, 64, 8))
    assert padded < 1.12 * RAGGED.sum() < random


def test_ranks_carry_about_the_same_cost():
    ranks = Division(BatchConfig(micro_tokens=512), flat=True).divide(RAGGED, world_size=4)
    costs = [sum(int(RAGGED[group].sum()) for group in rank) for rank in ranks]
    assert max(costs) <= 1.15 * min(costs)


def test_fewer_samples_than_ranks_leave_some_ranks_an_empty_micro_batch():
    ranks = Division(BatchConfig(), flat=True).divide(np.array([5, 7, 9]), world_size=4)
    assert sorted(len(rank[0]) for rank in ranks) == [0, 1, 1, 1]


def test_the_longest_come_first():
    [rank] = Division(BatchConfig(micro_size=8), flat=False).divide(RAGGED, world_size=1)
    costs = [RAGGED[group].max() * len(group) for group in rank]
    assert costs == sorted(costs, reverse=True)


def test_a_wanted_number_of_micro_batches_is_reached():
    [rank] = Division(BatchConfig(micro_size=8), flat=False).divide(RAGGED[:9], world_size=1, num_micro=6)
    assert len(rank) == 6
    assert flatten([rank]) == list(range(9))
