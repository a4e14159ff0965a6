"""The fake step beside real ones, and small depths beside the whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs
import pytest
import torch
from plan.worlds import config_of, llama, run_of
from strategies.jobs import tiny_bert

from ftscale.checks.sample import read_sample
from ftscale.plan import dry_run
from ftscale.plan.batches import MicroBatches
from ftscale.plan.dry_run import DryStep, Probe, dry_step
from ftscale.precheck import check_config

LORA = {"method": "lora", "r": 4, "lora_dropout": 0.0, "target_modules": "all-linear"}


def dry(values: dict[str, Any], *, kind: str = "cpu", sharded: bool = False, accumulates: bool = False) -> DryStep:
    config = config_of(values)
    sample = read_sample(config, check_config(config))
    batches = MicroBatches(sample, world_size=1)
    probe = Probe(config, sample.task)
    probe.know_head(sample.task, batches.shortest())
    return dry_step(
        config,
        sample.task,
        batches.longest(config),
        probe=probe,
        kind=kind,
        accumulates=accumulates,
        sharded=sharded,
    )


def fullest(step: DryStep) -> float:
    return max(sum(moment.values()) for moment in step.moments)


@pytest.fixture(scope="module")
def small(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("dry")
    return run_of(llama("small", work / "model", shared), work, task={"name": "causal_lm", "max_length": 256})


@pytest.mark.parametrize(
    "sections",
    [
        {},
        needs.in_campaign({"train": {"precision": "bf16", "activation_checkpointing": True}}),
        needs.in_campaign({"adapter": LORA}),
        {"adapter": LORA, "train": {"precision": "bf16", "activation_checkpointing": True}},
    ],
    ids=["full", "checkpointing", "lora", "lora-checkpointing"],
)
def test_a_deep_model_follows_from_two_shallow_ones(
    small: dict[str, Any], sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    values = {**small, **sections}
    extrapolated = dry(values, kind="cuda")
    monkeypatch.setattr(dry_run, "SHALLOW", 100)
    whole = dry(values, kind="cuda")
    assert fullest(extrapolated) == pytest.approx(fullest(whole), rel=1e-3)
    assert extrapolated.flops == pytest.approx(whole.flops, rel=1e-6)
    assert extrapolated.sizes == whole.sizes


def test_weights_are_counted_as_the_real_model_has_them(small: dict[str, Any]):
    from transformers import AutoConfig, AutoModelForCausalLM

    real = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(small["model"]["name"]), dtype=torch.bfloat16)
    sizes = dry(small).sizes
    assert sizes.elements == sizes.trained == sum(weight.numel() for weight in real.parameters())
    assert sizes.bytes == 2 * sizes.elements
    assert sizes.largest_trained == real.lm_head.weight.numel()


def test_operations_are_those_of_a_real_step(small: dict[str, Any], tmp_path: Path):
    """Six a weight and token for products of matrices, plus those of attention."""
    step = dry(small, kind="cuda")
    matrices = step.sizes.elements - 32000 * 64 - 15 * 64  # all but the input embedding and the norms
    attention = 7 * (4 + 10) * 256 * 256 * 64
    assert step.flops == pytest.approx(6 * matrices * 256 + attention, rel=0.02)


def test_recomputation_keeps_less_and_computes_more(small: dict[str, Any]):
    plain = dry(small)
    recomputed = dry({**small, "train": {"precision": "bf16", "activation_checkpointing": True}})
    assert max(m["activations"] for m in recomputed.moments) < max(m["activations"] for m in plain.moments)
    assert recomputed.flops > 1.05 * plain.flops


def test_gradients_of_an_earlier_micro_batch_are_there_from_the_start(small: dict[str, Any]):
    first, later = dry(small), dry(small, accumulates=True)
    assert fullest(later) > fullest(first)
    assert any(
        moment["gradients"] == pytest.approx(later.sizes.trained_bytes) and moment["logits"] for moment in later.moments
    )


def test_a_sharded_head_makes_all_logits(small: dict[str, Any]):
    assert fullest(dry(small, sharded=True)) > fullest(dry(small)) + 256 * 32000 * 4


def test_flat_rows_are_planned_where_training_would_lay_them(small: dict[str, Any]):
    assert dry(small).layout == "flat"
    assert dry({**small, "batch": {"global_size": 2, "layout": "padded"}}).layout == "padded"


def test_a_classifier_and_an_encoder_are_planned_too(shared: Path, tmp_path: Path):
    import tiny
    from strategies.jobs import tiny_bert

    bert = tiny_bert(shared, tmp_path)
    step = dry({**tiny.settings(shared, tmp_path), "model": {"name": str(bert), "init": "random"}})
    assert step.flops > 0
    assert step.sizes.trained == step.sizes.elements
    assert replace(step).sizes.matrices == 0


def test_a_tagger_is_planned_too(shared: Path, tmp_path: Path):
    import tiny

    words = {"path": str(shared / "data/ner/ncbi_disease/train.tsv"), "format": "conll", "limit": 8}
    values = {**tiny.settings(shared, tmp_path), "task": "token_classification", "data": {"train": words}}
    step = dry(values)
    tags = 3  # O, B-Disease, I-Disease
    assert step.sizes.elements == 260_032 + tags * 64 + tags
    assert step.flops > 0


def test_a_mask_by_row_is_a_byte_an_element(shared: Path, tmp_path: Path):
    """Five dropouts over 64 samples of 64 tokens of 64 numbers; a draw works in a MiB."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "word " * 62, "label": str(row % 2)}) + "\n" for row in range(64)))
    values = {
        "task": {"name": "text_classification", "max_length": 64, "labels": ["0", "1"]},
        "run_folder": str(tmp_path / "run"),
        "data": {"train": str(rows), "cache_dir": str(tmp_path / "cache")},
        "batch": {"global_size": 64, "micro_size": 64, "layout": "padded"},
    }
    model = {"name": str(tiny_bert(shared, tmp_path)), "init": "random"}
    plain = dry({**values, "model": model})
    dropped = dry({**values, "model": {**model, "overrides": {"hidden_dropout_prob": 0.1}}})
    elements = 5 * 64 * 64 * 64
    assert elements <= fullest(dropped) - fullest(plain) <= elements + 2**20
    assert dropped.flops == plain.flops
