"""New tokens whose random embeddings would stay are named, with what trains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftscale.config import parse_config
from ftscale.config.schema import AdapterConfig, ModelConfig
from ftscale.modalities.text import Text
from ftscale.models.adapt import apply_adapter
from ftscale.models.load import fit_vocabulary, load_model
from ftscale.precheck.vocabulary import vocabulary_warnings
from ftscale.tasks import build_task

IDS = list(range(512, 518))


@pytest.fixture
def places(shared: Path, tmp_path: Path) -> tuple[str, str]:
    """The 260 K Llama, and its tokenizer with six tokens more."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    tokenizer.add_tokens([f"<new{number}>" for number in range(6)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(shared / "weights/stories260K"), str(tmp_path / "tokenizer")


def warnings(places: tuple[str, str], **sections: Any) -> list[str]:
    model = {"name": places[0], "processor": places[1]}
    settings = {"task": "causal_lm", "run_folder": "r", "model": model, "data": {"train": "t.txt"}, **sections}
    config = parse_config(settings, source="test")
    return vocabulary_warnings(config, build_task(config.task, Text().load_processor(config.model)))


def test_new_tokens_under_lora_are_named_with_what_trains_them(places: tuple[str, str]):
    (warning,) = warnings(places, adapter={"method": "lora", "target_modules": ["q_proj"]})
    assert warning.startswith("6 tokens are new to the model, and their random embeddings do not train: <new0>, <new1>")
    assert "adapter.modules_to_save: [embed_tokens]" in warning
    assert f"adapter.trainable_token_indices: {IDS}" in warning


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": IDS},
        {"trainable_token_indices": {"embed_tokens": IDS}},
    ],
)
def test_following_the_advice_trains_them_and_ends_the_warning(places: tuple[str, str], options: dict[str, Any]):
    adapter = {"method": "lora", "r": 4, "target_modules": ["q_proj"], **options}
    assert warnings(places, adapter=adapter) == []
    config = ModelConfig(name=places[0], processor=places[1])
    model = load_model(config, auto_class="AutoModelForCausalLM", settings={}, dtype=torch.float32, seed=0)
    fit_vocabulary(model, Text().load_processor(config), seed=0)
    adapted = apply_adapter(model, AdapterConfig(**adapter), task_type="CAUSAL_LM")
    loss = adapted(input_ids=torch.tensor([[1, 512, 5, 513]]), labels=torch.tensor([[1, 512, 5, 513]])).loss
    loss.backward()
    trained = [name for name, weight in adapted.named_parameters() if weight.grad is not None and weight.grad.any()]
    assert any("embed_tokens" in name for name in trained)


def test_some_of_the_rows_are_not_all(places: tuple[str, str]):
    (warning,) = warnings(places, adapter={"method": "lora", "trainable_token_indices": IDS[:4]})
    assert warning.startswith(
        "2 tokens are new to the model, and their random embeddings do not train: <new4>, <new5>;"
    )


def test_tokens_in_spare_rows_are_new_too(places: tuple[str, str], tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(places[0])
    model.resize_token_embeddings(520)
    model.save_pretrained(tmp_path / "spare")
    AutoTokenizer.from_pretrained(places[0]).save_pretrained(tmp_path / "spare")
    (warning,) = warnings((str(tmp_path / "spare"), places[1]), adapter={"method": "lora"})
    assert warning.startswith("6 tokens are new to the model (6 of them in spare rows of the embedding)")


def test_frozen_embeddings_leave_them_random_without_an_adapter_too(places: tuple[str, str]):
    assert warnings(places) == []
    assert "leave out trainable.freeze_embeddings" in warnings(places, trainable={"freeze_embeddings": True})[0]
    assert warnings(places, trainable={"scope": "last_blocks", "last_blocks": 1, "patterns": ["embed_tokens"]}) == []


def test_a_tokenizer_whose_ids_stand_for_other_tokens_is_told(shared: Path, places: tuple[str, str]):
    other = str(shared / "weights/tokenizers/gpt2")
    assert "gives other ids than the model's own tokenizer" in warnings((places[0], other))[0]
