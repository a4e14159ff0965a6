"""A fresh process without ftscale loads what was saved, of every adapter method, and answers as the trained model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from models.test_adapt import METHODS, step
from planted import plant

import ftscale.models.prove
from ftscale.base.errors import UserError
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


def prove(
    model: torch.nn.Module, folder: Path, *, auto_class: str, quantized: bool = False, allow_pickle: bool = False
) -> Proof:
    save_model(model.eval(), None, folder)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        outputs = {"logits": model(**inputs).logits.float()}
    return prove_saved(
        folder,
        inputs,
        outputs,
        auto_class=auto_class,
        dtype=model.dtype,
        device=torch.device("cpu"),
        quantized=quantized,
        allow_pickle=allow_pickle,
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


# ---------------------------------------------------------------- whose files are read

SHADOWS = ("random", "tokenize", "profile", "yaml", "torch", "reload")


@pytest.mark.real_start
def test_nothing_of_the_working_folder_is_imported(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    work = tmp_path / "work"
    work.mkdir()
    for name in SHADOWS:
        (work / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ImportError('the user\\'s own')\n"
        )
    monkeypatch.chdir(work)
    assert prove(stories(shared), tmp_path / "model", auto_class=CAUSAL).largest_difference < 1e-4
    assert not (tmp_path / "ran").exists()


def test_folders_that_the_environment_names_are_the_same_for_the_fresh_process(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: dict[str, str] = {}
    start = fresh(monkeypatch, lambda work, environment: seen.update(environment))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "cache/hf")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["lib", "", str(tmp_path)]))
    prove(stories(shared), tmp_path / "model", auto_class=CAUSAL)
    assert start.called
    assert seen["HF_HOME"] == str(tmp_path / "cache/hf")
    assert seen["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path / "lib")
    assert all(seen["PYTHONPATH"].split(os.pathsep))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_proof_that_was_killed_says_by_what(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    killed = subprocess.CompletedProcess(["python"], -number, "", "")
    monkeypatch.setattr(ftscale.models.prove, "fresh_python", lambda *given, environment: killed)
    with pytest.raises(RuntimeError, match=rf"is not proved: .* was ended by {number.name}.* The checkpoints are good"):
        prove(stories(shared), tmp_path / "model", auto_class=CAUSAL)


@pytest.mark.parametrize("name", ["inputs.pt", "outputs.pt"])
def test_a_pickle_among_the_files_of_the_proof_does_not_run(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    mark = tmp_path / "ran"
    fresh(monkeypatch, lambda work, environment: plant(work / name, mark), after=name == "outputs.pt")
    with pytest.raises(
        (UserError, RuntimeError), match=r"outputs.pt is not what ftscale writes|Weights only load failed"
    ):
        prove(stories(shared), tmp_path / "model", auto_class=CAUSAL)
    assert not mark.exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_the_base_of_an_adapter_is_read_as_pickle_only_where_the_run_was_told_so(
    shared: Path, tmp_path: Path, allow_pickle: bool
):
    base = tmp_path / "base"
    shutil.copytree(shared / "weights/stories260K", base)
    model = load_model(ModelConfig(name=str(base)), auto_class=CAUSAL, settings={}, dtype=torch.float32, seed=0)
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    config = AdapterConfig(method="lora", r=4, init_lora_weights=False)
    model = apply_adapter(model, config, task_type="CAUSAL_LM", dtype=torch.float32)
    if allow_pickle:
        assert prove(model, tmp_path / "model", auto_class=CAUSAL, allow_pickle=True).largest_difference < 1e-4
        return
    with pytest.raises(RuntimeError, match=r"does not load in a fresh process[\s\S]*safetensors"):
        prove(model, tmp_path / "model", auto_class=CAUSAL)


def fresh(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Path, dict[str, str]], object], *, after: bool = False
) -> Mock:
    """Have `act(work, environment)` called before the fresh process, or after it."""
    usual = ftscale.models.prove.fresh_python

    def start(program: str, *arguments: str, environment: dict[str, str]) -> object:
        if not after:
            act(Path(arguments[1]), environment)
        done = usual(program, *arguments, environment=environment)
        if after:
            act(Path(arguments[1]), environment)
        return done

    watched = Mock(side_effect=start)
    monkeypatch.setattr(ftscale.models.prove, "fresh_python", watched)
    return watched
