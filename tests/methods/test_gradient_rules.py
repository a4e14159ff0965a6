"""A method's gradient rule: between backward and update, on every rank alike, and in checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from methods import runs
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ftscale.config import load_config
from ftscale.config.compatibility import check_combination
from ftscale.config.schema import AdapterConfig
from ftscale.config.strategies import STRATEGIES
from ftscale.distributed.runtime import Distributed
from ftscale.models.adapt import AdaLora, apply_adapter, gradient_rule

STRENGTH = 2.0


def run_of(shared: Path, work: Path, **changes: object) -> Path:
    return runs.run_of(shared, work, runs.toy("pulled", strength=STRENGTH), **changes)


def test_the_steps_are_those_of_plain_torch(shared: Path, tmp_path: Path):
    work = tmp_path / "start"
    still = run_of(shared, work, optimizer={"name": "sgd", "lr": 1e-30, "momentum": 0.0, "weight_decay": 0.0})
    runs.train(still, "train.max_steps=1")  # whose model has the new head that every run begins with
    tokenizer = AutoTokenizer.from_pretrained(work / "run/model")
    model = AutoModelForSequenceClassification.from_pretrained(work / "run/model").eval()
    average = [weight.detach().clone() for weight in model.parameters()]
    labels, losses, norms = torch.tensor([label for _, label in runs.ROWS]), [], []
    for _ in range(3):
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text, _ in runs.ROWS])
        loss = cross_entropy(logits, labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            norm = 0.0
            for weight, slow in zip(model.parameters(), average, strict=True):
                gradient = weight.grad + STRENGTH * (weight - slow)
                norm += float(gradient.square().sum())
                weight -= 0.1 * gradient
                slow.add_(weight).div_(2)
        losses.append(loss.item())
        norms.append(norm**0.5)
    lines = runs.train(run_of(shared, tmp_path))
    assert runs.figures(lines) == pytest.approx(losses, rel=1e-5)
    assert runs.figures(lines, "grad_norm") == pytest.approx(norms, rel=1e-4)


def test_a_rule_sees_the_whole_gradient_on_every_rank(shared: Path, tmp_path: Path):
    whole = runs.train(run_of(shared, tmp_path))
    cut = runs.train(
        run_of(shared, tmp_path), "distributed.strategy=ddp", f"run_folder={tmp_path / 'two'}", processes=2
    )
    for name in ("loss", "grad_norm"):
        assert runs.figures(cut, name) == pytest.approx(runs.figures(whole, name), rel=1e-5)


def test_a_resumed_rule_goes_on_as_the_unbroken_one(shared: Path, tmp_path: Path):
    file = run_of(shared, tmp_path, checkpoint={"prove": "never", "every": 3, "keep": 9})
    whole = runs.train(file, "train.max_steps=6")
    folder = tmp_path / "run"
    for name in ("result.json", "model"):
        remove = shutil.rmtree if (folder / name).is_dir() else Path.unlink
        remove(folder / name)
    shutil.rmtree(folder / "checkpoints/step-00000006")
    done = tiny.command("train", file, "train.max_steps=6", "--resume")
    assert done.code == 0, done.stderr
    resumed = tiny.steps(folder)[-3:]
    for name in ("loss", "grad_norm"):
        assert runs.figures(resumed, name) == runs.figures(whole, name)[-3:]


def test_a_rule_is_called_in_the_order_of_a_step(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ftscale.run import train as run

    built = []
    build = run._build_rule
    monkeypatch.setattr(run, "_build_rule", lambda *arguments: built.append(build(*arguments)) or built[-1])
    runs.train(run_of(shared, tmp_path), "train.max_steps=2")
    moments = ("before_step", "after_backward", "after_update")
    assert built[0].called == [(moment, step) for step in (1, 2) for moment in moments]


def test_zero_takes_the_gradients_that_a_rule_needs(shared: Path, tmp_path: Path):
    """DeepSpeed clips, updates and clears in one call, in which there is no moment for a rule."""
    engine = SimpleNamespace(step=lambda: None, get_global_grad_norm=lambda: 1.0)
    called: list[str] = []
    Distributed.step(
        SimpleNamespace(strategy=STRATEGIES["zero2"], module=engine),  # type: ignore[arg-type]
        after_backward=lambda: called.append("after_backward"),
        after_update=lambda: called.append("after_update"),
    )
    assert called == []
    config = load_config(run_of(shared, tmp_path))
    assert check_combination(config, strategy=STRATEGIES["ddp"]) == []
    [problem] = check_combination(config, strategy=STRATEGIES["zero2"])
    assert "use distributed.strategy: ddp" in problem


def test_adalora_has_a_gradient_rule_of_its_own():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"method": "adalora", "init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["q_proj"]}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
    adapted = apply_adapter(model, AdapterConfig.model_validate(settings), task_type="CAUSAL_LM")
    assert isinstance(gradient_rule(adapted), AdaLora)
