from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ftscale.config.schema import GuardConfig
from ftscale.train.guard import Statistics, first_not_finite, named_rows, verdict

STEADY = [1.0 + 0.01 * (step % 5) for step in range(40)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_always_bad(loss: float):
    assert verdict(GuardConfig(), [], loss) == "the loss is not finite"


def test_a_spike_is_bad_where_it_is_asked_for_and_known_well_enough():
    watching = GuardConfig(spike_z=6.0)
    assert verdict(GuardConfig(), STEADY, 9.0) is None
    assert verdict(watching, STEADY[:5], 9.0) is None
    assert verdict(watching, STEADY, 1.05) is None
    assert "deviations above its mean" in str(verdict(watching, STEADY, 1.5))
    assert verdict(watching, STEADY, 0.1) is None, "a fall is welcome"


def test_the_first_module_that_is_not_finite_is_named_and_no_draw_is_lost():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[2].bias.fill_(math.inf)
    torch.manual_seed(1)
    assert first_not_finite(model, lambda: {"loss": model(torch.ones(3, 2)).sum()}) == "2"
    after = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(2))


def test_a_loss_alone_can_be_to_blame_or_nothing():
    model = nn.Sequential(nn.Linear(2, 1))
    assert first_not_finite(model, lambda: {"loss": model(torch.ones(1, 2)).sum() * math.inf}) == "the loss alone"
    assert first_not_finite(model, lambda: {"loss": model(torch.ones(1, 2)).sum()}) is None


def test_statistics_of_a_batch_norm_come_back():
    norm = nn.BatchNorm1d(2)
    statistics = Statistics(nn.Sequential(norm))
    norm(torch.randn(4, 2))
    kept = norm.running_mean.clone()
    statistics.keep()
    norm(torch.full((4, 2), math.nan))
    assert norm.running_mean.isnan().all()
    statistics.restore()
    assert torch.equal(norm.running_mean, kept)
    assert norm.num_batches_tracked == 1


def test_many_rows_are_named_by_the_first():
    assert named_rows(["a", "b"]) == ["a", "b"]
    assert named_rows([str(number) for number in range(20)])[-2:] == ["7", "and 12 more"]
