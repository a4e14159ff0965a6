"""Bytes by arithmetic beside the bytes of the real things."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ftscale.config.schema import OptimizerConfig
from ftscale.config.strategies import STRATEGIES
from ftscale.optim import build_optimizer
from ftscale.plan.memory import NF4_BYTES, NF4_TABLES, state_bytes, zero_settings


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "ademamix", "adamw_8bit", "lion_8bit", "ademamix_8bit"])
def test_optimizer_states_are_as_large_as_real_ones(name: str):
    model = nn.Linear(512, 512, bias=False)
    optimizer = build_optimizer(model, OptimizerConfig(name=name))
    model(torch.randn(2, 512)).sum().backward()
    optimizer.step()
    states = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.ndim and not key.startswith("qmap")
    ]
    real = sum(value.numel() * value.element_size() for value in states)
    assert state_bytes(name, 512 * 512) == pytest.approx(real, rel=1e-3)


def test_sgd_without_momentum_has_no_state():
    assert state_bytes("sgd", 1000, momentum=0.0) == 0


def test_a_quantised_base_is_as_large_as_the_real_one(shared: Path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(shared / "weights/stories260K", quantization_config=config)
    layer = model.model.layers[0].mlp.up_proj
    state = layer.weight.quant_state
    tensors = [layer.weight, state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    elements = state.shape.numel()
    assert NF4_BYTES * elements + NF4_TABLES == pytest.approx(real, rel=0.01)


def test_bucket_sizes_are_those_of_the_shipped_files():
    assert zero_settings(STRATEGIES["zero2"])["reduce_bucket_size"] == 50_000_000
    assert zero_settings(STRATEGIES["ddp"]) == {}
