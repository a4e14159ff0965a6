"""Each name builds the optimizer that it says; settings that would be ignored are refused."""

import re

import pytest
import torch
from torch import nn
from transformers.training_args import OptimizerNames

from ftscale.base.errors import UserError
from ftscale.config.schema import OptimizerConfig
from ftscale.optim import build_cpu_adam, build_optimizer
from ftscale.optim.optimizers import OPTIMIZERS, check_optimizer


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 1))


def losses(net, optimizer, *, steps=20):
    inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).to(next(net.parameters()).dtype)
    targets = inputs[:, :1] * 2 - 1
    values = []
    for _ in range(steps):
        loss = (net(inputs) - targets).float().pow(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    return values


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("master_weights", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name, master_weights):
    net = model().to(torch.bfloat16 if master_weights else torch.float32)
    optimizer = build_optimizer(net, OptimizerConfig(name=name, lr=1e-2), master_weights=master_weights)
    values = losses(net, optimizer)
    assert values[-1] < 0.6 * values[0]
    assert type(optimizer.inner if master_weights else optimizer).__name__ == OPTIMIZERS[name].name


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name.endswith("8bit") and "paged" not in name])
def test_8_bit_optimizers_keep_their_state_in_bytes(name):
    net = model()
    optimizer = build_optimizer(net, OptimizerConfig(name=name, lr=1e-3))
    losses(net, optimizer, steps=1)
    assert optimizer.state[net[0].weight]["state1"].dtype == torch.uint8


def test_settings_reach_the_optimizer():
    config = OptimizerConfig(name="adamw", lr=3e-4, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6)
    groups = {group["name"]: group for group in build_optimizer(model(), config).param_groups}
    assert groups["body"]["lr"] == 3e-4
    assert groups["body"]["betas"] == (0.8, 0.9)
    assert groups["body"]["eps"] == 1e-6
    assert (groups["body"]["weight_decay"], groups["body_no_decay"]["weight_decay"]) == (0.2, 0.0)
    assert build_optimizer(model(), OptimizerConfig(name="sgd", momentum=0.7)).param_groups[0]["momentum"] == 0.7
    assert build_optimizer(model(), OptimizerConfig(name="adamw")).param_groups[0]["betas"] == (0.9, 0.999)
    assert len(build_optimizer(model(), OptimizerConfig(name="ademamix")).param_groups[0]["betas"]) == 3


def test_adafactor_learns_at_the_rate_that_is_asked():
    group = build_optimizer(model(), OptimizerConfig(name="adafactor", lr=1e-3)).param_groups[0]
    assert (group["lr"], group["relative_step"], group["scale_parameter"]) == (1e-3, False, False)


@pytest.mark.parametrize("name", [kind.value for kind in OptimizerNames])
def test_each_name_of_transformers_is_ours_or_told_apart(name: str):
    """Where the message names one of ours, it is of the same kind: first word, 8 bits or not, paged or not."""
    if name in OPTIMIZERS:
        check_optimizer(OptimizerConfig(name=name))
    else:
        with pytest.raises(UserError) as error:
            check_optimizer(OptimizerConfig(name=name))
        [problem] = error.value.problems
        if found := re.search(r"set optimizer.name: (\w+)\.$", problem):
            ours = found.group(1)
            check_optimizer(OptimizerConfig(name=ours))
            assert name.replace("paged_", "").split("_")[0] == ours.replace("paged_", "").split("_")[0]
            assert ("8bit" in name, "paged" in name) == ("8bit" in ours, "paged" in ours)
        else:
            assert problem.startswith(f"optimizer.name = '{name}' is not among ftscale's optimizers; known: ")


def test_an_unknown_name_comes_with_the_nearest():
    with pytest.raises(UserError, match="optimizer.name = 'adamw8bit' is not known; did you mean 'adamw_8bit'?"):
        build_optimizer(model(), OptimizerConfig(name="adamw8bit"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"name": "adamw", "momentum": 0.5}, "optimizer.momentum = 0.5 is not a setting of adamw"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, "optimizer.betas = .* is not a setting of sgd"),
        ({"name": "lion", "eps": 1e-6}, "optimizer.eps = 1e-06 is not a setting of lion"),
        (
            {"name": "ademamix", "betas": (0.9, 0.99)},
            r"optimizer.betas = \[0.9, 0.99\] must have 3 numbers for ademamix",
        ),
        ({"name": "sgd_8bit", "momentum": 0}, "optimizer.momentum = 0 must be positive for sgd_8bit"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(settings, problem):
    with pytest.raises(UserError, match=problem):
        build_optimizer(model(), OptimizerConfig(**settings))


def test_a_resolved_config_with_every_default_written_out_is_accepted():
    config = OptimizerConfig(**OptimizerConfig(name="adamw").model_dump())
    assert "momentum" in config.model_fields_set
    build_optimizer(model(), config)


def test_only_adam_can_be_offloaded():
    with pytest.raises(UserError, match="optimizer.name = lion cannot be offloaded"):
        build_cpu_adam(model(), OptimizerConfig(name="lion"))


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_the_offloaded_adam_takes_the_steps_of_torchs(name):
    config = OptimizerConfig(name=name, lr=1e-2, weight_decay=0.1)
    ours, theirs = model(), model()
    here = losses(ours, build_cpu_adam(ours, config))
    there = losses(theirs, build_optimizer(theirs, config))
    assert here == pytest.approx(there, rel=1e-4)
