"""Whatever lies in a model's folder, it loads or is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.anything import altered, as_json, budget, damaged, json_values, refused
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, ViTImageProcessorPil

from ftscale.config.schema import ModelConfig
from ftscale.modalities.image import Images
from ftscale.modalities.text import Text
from ftscale.models.load import load_generation_config, load_model, load_model_config
from ftscale.models.save import load_saved, load_saved_processor, save_model

SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folders(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole model with its tokenizer, an adapter on it as `save_model` writes it, and an image processor."""
    work = tmp_path_factory.mktemp("models")
    tokenizer = Text().load_processor(ModelConfig(name=str(shared / "weights/stories260K")))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE))
    save_model(model, tokenizer, work / "whole")
    base = LlamaForCausalLM.from_pretrained(work / "whole")
    save_model(get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])), tokenizer, work / "adapter")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(work / "images")
    return {path.name: path for path in work.iterdir()}


def _train_loads(folder: Path) -> None:
    config = ModelConfig(name=str(folder))
    load_model_config(config, settings={})
    load_model(config, auto_class="AutoModelForCausalLM", settings={}, dtype=torch.float32, seed=0, device="meta")


LOADERS: dict[str, Callable[[Path], Any]] = {
    "tokenizer": lambda folder: Text().load_processor(ModelConfig(name=str(folder))),
    "image_processor": lambda folder: Images().load_processor(ModelConfig(name=str(folder))),
    "saved_processor": load_saved_processor,
    "generation": lambda folder: load_generation_config(ModelConfig(name=str(folder))),
    "train": _train_loads,
    "saved": lambda folder: load_saved(folder, auto_class="AutoModelForCausalLM"),
}
FILES = {
    ("whole", "config.json"): ("train", "saved", "tokenizer"),
    ("whole", "generation_config.json"): ("generation",),
    ("whole", "tokenizer_config.json"): ("tokenizer", "saved_processor"),
    ("whole", "tokenizer.json"): ("tokenizer",),
    ("whole", "model.safetensors"): ("train", "saved"),
    ("adapter", "adapter_config.json"): ("saved",),
    ("adapter", "adapter_model.safetensors"): ("saved",),
    ("adapter", "base_config/config.json"): ("saved",),
    ("images", "preprocessor_config.json"): ("image_processor", "saved_processor"),
}


def changes(path: Path) -> st.SearchStrategy[bytes | None]:
    """Other bytes, another object, or no file at all."""
    content = path.read_bytes()
    gone = st.none()
    if path.suffix == ".safetensors":
        return damaged(content) | damaged(content[:200]).map(lambda head: head + content[200:]) | gone
    value = json.loads(content)
    if path.name == "tokenizer.json":  # of its thousands of places, those above the vocabulary
        value = {**value, "model": {**value["model"], "vocab": dict(list(value["model"]["vocab"].items())[:9])}}
    return damaged(content) | altered(value).map(as_json) | json_values.map(as_json) | gone


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_damaged_file_of_a_model_is_read_or_refused(folders: dict[str, Path], tmp_path: Path, kind: str, name: str):
    whole = folders[kind]
    shutil.copytree(whole, tmp_path / kind)
    path = tmp_path / kind / name

    @budget(6)
    @given(changes(whole / name))
    def load(content: bytes | None) -> None:
        for loader in FILES[kind, name]:
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            with refused():
                LOADERS[loader](tmp_path / kind)

    load()
