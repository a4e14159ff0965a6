"""float32 copies of bf16 weights: no update is lost, and a saved state comes back exactly."""

import pytest
import torch
from torch import nn

from ftscale.config.schema import OptimizerConfig, ScheduleConfig
from ftscale.optim import build_optimizer, build_schedule
from ftscale.optim import master_weights as module


def net(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 4)).to(dtype)


def build(model, *, name="adamw", lr=1e-3, master_weights=True):
    return build_optimizer(model, OptimizerConfig(name=name, lr=lr, weight_decay=0.0), master_weights=master_weights)


def steps(model, optimizer, numbers):
    for number in numbers:
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(number)).to(model[0].weight.dtype)
        model(inputs).float().pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_updates_too_small_for_bf16_add_up():
    weight = {}
    for master_weights in (False, True):
        model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        nn.init.ones_(model.weight)
        optimizer = build(model, name="sgd", lr=1e-4, master_weights=master_weights)
        optimizer.param_groups[0]["momentum"] = 0.0
        for _ in range(100):
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        weight[master_weights] = model.weight.item()
    assert weight[False] == 1.0  # 1e-4 is under half of 2^-8, the step of bfloat16 below 1
    assert weight[True] == pytest.approx(0.99, abs=0.003)


def test_masters_take_the_steps_of_a_float32_model_with_the_same_gradients():
    model, reference = net(), net().float()
    optimizer, plain = build(model), build(reference, master_weights=False)
    for number in range(5):
        for low, full in zip(model.parameters(), reference.parameters(), strict=True):
            low.grad = torch.randn(low.shape, generator=torch.Generator().manual_seed(number)).bfloat16()
            full.grad = low.grad.float()
        optimizer.step()
        plain.step()
    for low, full in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(low, full.bfloat16())
    masters = [master for group in optimizer.masters for master in group]
    full = [weight for group in plain.param_groups for weight in group["params"]]
    assert all(torch.equal(master, weight) for master, weight in zip(masters, full, strict=True))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "sgd", "adafactor", "lion_8bit"])
def test_steps_in_chunks_are_those_of_all_weights_at_once(name, monkeypatch):
    trained = []
    for chunk in (module.CHUNK, 64):
        monkeypatch.setattr(module, "CHUNK", chunk)
        model = net()
        model[2].float()
        optimizer = build(model, name=name)
        for number in range(3):
            for weight in model.parameters():
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)).to(weight)
            optimizer.step()
            assert all(weight.grad is not None for weight in model.parameters())
        trained.append(list(model.parameters()))
    assert not torch.equal(trained[0][0], net()[0].weight)
    assert all(torch.equal(whole, parts) for whole, parts in zip(*trained, strict=True))


def test_float32_weights_are_stepped_as_they_are():
    model = net()
    model[2].float()
    optimizer = build(model)
    masters = {id(master) for group in optimizer.masters for master in group}
    assert id(model[2].weight) in masters
    assert id(model[0].weight) not in masters


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "sgd", "adafactor", "lion_8bit"])
def test_a_run_that_was_saved_and_loaded_ends_with_the_same_weights(name, tmp_path):
    whole = net()
    optimizer = build(whole, name=name)
    steps(whole, optimizer, range(6))

    first = net()
    optimizer = build(first, name=name)
    steps(first, optimizer, range(3))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")

    second = net()
    second.load_state_dict(net().state_dict())
    optimizer = build(second, name=name)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    steps(second, optimizer, range(3, 6))
    for expected, weight in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_a_schedule_moves_the_inner_rate_and_is_saved_with_it():
    model = net()
    optimizer = build(model, lr=1.0)
    schedule = build_schedule(optimizer, ScheduleConfig(name="linear"), num_steps=4)
    for expected in (1.0, 0.75, 0.5):
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        optimizer.step()
        assert [group["lr"] for group in optimizer.inner.param_groups] == [expected, expected]
        schedule.step()
    state = optimizer.state_dict()
    assert [group["lr"] for group in state["inner"]["param_groups"]] == [0.25, 0.25]
    other = build(net(), lr=1.0)
    other.load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == [0.25, 0.25]


def test_a_weight_without_a_gradient_stays():
    model = net()
    optimizer = build(model)
    before = model[2].weight.clone()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    assert torch.equal(model[2].weight, before)


def test_gradients_are_cleared_by_zero_grad():
    model = net()
    optimizer = build(model)
    steps(model, optimizer, [0])
    assert all(weight.grad is None for weight in model.parameters())
    assert all(master.grad is None for group in optimizer.masters for master in group)


def test_accelerate_prepares_it_like_any_other_optimizer():
    from accelerate import Accelerator

    plain, prepared = net(), net()
    optimizer = build(plain)
    accelerator = Accelerator(cpu=True)
    model, wrapped = accelerator.prepare(prepared, build(prepared))
    steps(plain, optimizer, range(3))
    steps(model, wrapped, range(3))
    for expected, weight in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected)
