"""No step of saving needs the network: a base that is known by its hub id alone, with new tokens, under LoRA."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import tiny
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ftscale.modalities.text import Text
from ftscale.models.save import export_model

HUB_ID = "someone/stories"
COMMIT = "0" * 40


@pytest.fixture
def cached(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a model that lies in the hub's cache, where nothing else can be reached."""
    cache = tmp_path / "hub"
    place = cache / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(shared / "weights/stories260K", place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    return HUB_ID


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to look up a host, which fails as without a network."""
    asked: list[Any] = []

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def enlarged(shared: Path, folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    tokenizer.add_tokens([f"<new{number}>" for number in range(6)])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.real_start  # the hub's folder is read at import
@pytest.mark.parametrize("prove", ["final", "never"])
def test_new_tokens_on_a_base_of_the_hub_are_saved_without_it(
    shared: Path, tmp_path: Path, cached: str, lonely: list[Any], prove: str
):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"<new{n}> once upon"}) + "\n" for n in range(6)))
    settings = tiny.settings(shared, tmp_path, task={"name": "causal_lm"}, checkpoint={"prove": prove})
    settings["model"] = {"name": cached, "processor": str(enlarged(shared, tmp_path / "tokenizer"))}
    settings["data"] = {"train": str(tmp_path / "rows.jsonl"), "cache_dir": str(tmp_path / "cache")}
    settings["adapter"] = {"method": "lora", "r": 4}
    outcome = tiny.command("train", tiny.write_run(tmp_path, settings))
    assert outcome.code == 0, outcome.stderr
    saved = tmp_path / "run/model"
    assert lonely == []
    base = AutoModelForCausalLM.from_pretrained(cached)
    with torch.no_grad():
        base.resize_token_embeddings(518)
        for weight in base.get_input_embeddings().parameters():
            weight[512:] = 7.0  # a wrong answer where the folder lacks them
    model = PeftModel.from_pretrained(base, saved).eval()
    assert model.get_input_embeddings().weight[512:].abs().max() < 1
    report = export_model(saved, tmp_path / "out", auto_class="AutoModelForCausalLM", probe=Text().probe, merge=True)
    assert report["largest_logit_change"] < 1e-3
    assert AutoConfig.from_pretrained(tmp_path / "out").vocab_size == 518


def test_an_adapter_on_the_bases_own_vocabulary_holds_no_embeddings(shared: Path, tmp_path: Path, cached: str):
    from safetensors import safe_open

    (tmp_path / "rows.txt").write_text("once upon a time\n" * 6)
    data = {"train": {"path": str(tmp_path / "rows.txt"), "format": "text"}, "cache_dir": str(tmp_path / "cache")}
    settings = tiny.settings(shared, tmp_path, task={"name": "causal_lm"}, data=data, model=cached)
    settings["adapter"] = {"method": "lora", "r": 4}
    assert tiny.command("train", tiny.write_run(tmp_path, settings)).code == 0
    with safe_open(tmp_path / "run/model/adapter_model.safetensors", framework="pt") as weights:
        assert all("lora_" in name for name in weights.keys())  # noqa: SIM118
