"""A fresh process without ftscale loads what was saved, of every adapter method, and answers as the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_adapt import METHODS, step

from ftscale.config.schema import AdapterConfig, HeadConfig, ModelConfig
from ftscale.models.adapt import apply_adapter
from ftscale.models.head import head_module_names, replace_head
from ftscale.models.load import load_model
from ftscale.models.prove import Proof, prove_saved
from ftscale.models.save import save_model

STARTED = ("lora", "boft", "prefix_tuning", "ln_tuning")
"""Methods whose proof is started as in a run: eight with the other tests of this file. All other proofs are forked."""
IDS = torch.arange(5, 17)[None]
CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


def prove(model: torch.nn.Module, folder: Path, *, auto_class: str, quantized: bool = False) -> Proof:
    save_model(model.eval(), None, folder)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        logits = model(**inputs).logits.float()
    return prove_saved(
        folder,
        inputs,
        logits,
        auto_class=auto_class,
        dtype=model.dtype,
        device=torch.device("cpu"),
        quantized=quantized,
    )


def stories(shared: Path, **settings: str) -> torch.nn.Module:
    config = ModelConfig(name=str(shared / "weights/stories260K"), **settings)
    return load_model(config, auto_class=CAUSAL, settings={}, dtype=torch.float32, seed=0)


def methods() -> list[Any]:
    real = pytest.mark.real_start
    return [pytest.param(method, marks=real) if method in STARTED else method for method in METHODS]


@pytest.mark.slow
@pytest.mark.parametrize("method", methods())
def test_an_adapter_of_every_method_is_proved(shared: Path, tmp_path: Path, method: str):
    config = AdapterConfig(method=method.split()[0], **METHODS[method])
    model = apply_adapter(stories(shared), config, task_type="CAUSAL_LM", num_steps=10, dtype=torch.float32)
    step(model, lr=0.05)
    proof = prove(model, tmp_path / "model", auto_class=CAUSAL)
    assert proof.largest_difference < 1e-4
    assert proof.adapter_change is not None
    assert proof.adapter_change > 10 * proof.largest_difference


@pytest.mark.real_start
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_on_a_quantised_base_is_proved(shared: Path, tmp_path: Path, kind: str):
    config = AdapterConfig(method="lora", r=4, init_lora_weights=False)
    model = apply_adapter(stories(shared, quantization=kind), config, task_type="CAUSAL_LM", dtype=torch.float32)
    proof = prove(model, tmp_path / "model", auto_class=CAUSAL, quantized=True)
    assert proof.largest_difference < proof.tolerance < proof.adapter_change


@pytest.mark.real_start
@pytest.mark.parametrize("method", ["none", "lora"])
def test_a_classifier_with_a_head_of_several_layers_is_proved(minilm: Path, tmp_path: Path, method: str):
    settings = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    named = ModelConfig(name=str(minilm))
    model = load_model(named, auto_class=CLASSIFIER, settings=settings, dtype=torch.float32, seed=0)
    model = replace_head(model, HeadConfig(hidden_sizes=(8,)), seed=0)
    options = {"init_lora_weights": False} if method == "lora" else {}
    adapter = AdapterConfig(method=method, **options)
    heads = head_module_names(model)
    model = apply_adapter(model, adapter, task_type="SEQ_CLS", new_modules=heads, dtype=torch.float32)
    assert prove(model, tmp_path / "model", auto_class=CLASSIFIER).largest_difference < 1e-4
