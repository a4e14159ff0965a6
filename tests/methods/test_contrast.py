"""A loss over the global batch, by two passes: the same however the batch is cut, and plain torch's over the whole."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from methods import runs
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from ftscale.config import parse_config
from ftscale.data.loader import Step
from ftscale.methods import build_method
from ftscale.methods.base import Context, undisturbed
from ftscale.train.loop import TaskModule

TEMPERATURE = 0.05


@pytest.fixture(scope="module")
def expected(shared: Path) -> list[float]:
    """Three steps of plain torch over all rows, without padding: samples one by one."""
    folder = shared / "weights/stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).model
    inputs = [tokenizer(text, return_tensors="pt")["input_ids"] for text, _ in runs.ROWS]
    labels = torch.tensor([label for _, label in runs.ROWS])
    losses = []
    for _ in range(3):
        embeddings = torch.cat([base(ids).last_hidden_state.mean(dim=1) for ids in inputs])
        loss = torch.zeros(())
        for number in range(len(labels)):
            others = [other for other in range(len(labels)) if other != number]
            near = -(embeddings[others] - embeddings[number]).square().mean(dim=1) / TEMPERATURE
            alike = labels[others] == labels[number]
            loss = loss - torch.log(near.softmax(dim=0)[alike].sum()) / len(labels)
        base.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in base.parameters():
                weight -= 0.1 * weight.grad
        losses.append(loss.item())
    assert losses[0] - losses[-1] > 0.01
    return losses


@pytest.mark.parametrize("micro_size", [8, 3, 1])
def test_one_trajectory_however_a_step_is_cut(shared: Path, tmp_path: Path, expected: list[float], micro_size: int):
    file = runs.run_of(shared, tmp_path, runs.toy("contrast", temperature=TEMPERATURE))
    lines = runs.train(file, f"batch.micro_size={micro_size}")
    assert runs.figures(lines) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_one_trajectory_on_two_ranks(shared: Path, tmp_path: Path, expected: list[float], strategy: str):
    """Three micro-batches: one of the two ranks fills up with one that does not count."""
    file = runs.run_of(shared, tmp_path, runs.toy("contrast", temperature=TEMPERATURE))
    lines = runs.train(file, "batch.micro_size=3", f"distributed.strategy={strategy}", processes=2)
    assert runs.figures(lines) == pytest.approx(expected, rel=1e-4)


def test_negatives_of_the_micro_batch_alone_are_another_loss(shared: Path, expected: list[float]):
    """What the two passes are for."""
    folder = shared / "weights/stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).model
    total = 0.0
    for start in range(0, len(runs.ROWS), 4):
        part = runs.ROWS[start : start + 4]
        with torch.no_grad():
            inputs = [tokenizer(text, return_tensors="pt")["input_ids"] for text, _ in part]
            embeddings = [base(ids).last_hidden_state.mean(dim=1) for ids in inputs]
        near = -(torch.stack(embeddings) - torch.cat(embeddings)).square().mean(-1) / TEMPERATURE
        near = near.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf)
        alike = torch.tensor([[a == b for _, a in part] for _, b in part])
        total += float((near.logsumexp(1) - near.masked_fill(~alike, -torch.inf).logsumexp(1)).sum())
    assert total / len(runs.ROWS) != pytest.approx(expected[0], rel=0.05)


def test_the_second_pass_draws_the_dropout_of_the_first_and_nothing_else_is_moved(shared: Path):
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/bert-base-uncased")
    sections = {
        "task": {"name": "text_classification", "labels": ["0", "1"]},
        "method": runs.toy("contrast"),
        "run_folder": "run",
        "model": "model",
        "data": {"train": "rows.csv"},
    }
    config = parse_config(sections, source="test")
    method = build_method(config.method, config.task, tokenizer)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    module = TaskModule(BertForSequenceClassification(BertConfig(vocab_size=30522, **sizes)), method).train()
    module.model.bert.encoder.layer[0].eval()
    samples = method.prepare([{"text": text, "label": str(label)} for text, label in runs.ROWS])
    parts = [method.collate(samples[start : start + 3], layout="padded", train=True) for start in (0, 3, 6)]
    step = Step([(part, True) for part in parts], None, tokens=0)
    alone = SimpleNamespace(device=torch.device("cpu"), rank=0, gather_rows=lambda rows: [rows])
    modes = [inner.training for inner in module.modules()]
    generator = torch.get_rng_state()
    seen: list[torch.Tensor] = []
    embed = method.inner.embed

    def noting(model: torch.nn.Module, batch: object) -> torch.Tensor:
        seen.append(embed(model, batch))
        return seen[-1]

    method.inner.embed = noting
    with undisturbed(module):
        step = method.before_step(step, Context(module, alone, 1))
    assert torch.equal(torch.get_rng_state(), generator)
    assert [inner.training for inner in module.modules()] == modes
    assert all(weight.grad is None for weight in module.parameters())
    for batch, _ in step.micro_batches:
        module(batch=batch)
    assert len(seen) == 6
    assert all(torch.equal(first, second) for first, second in zip(seen[:3], seen[3:], strict=True))
    with torch.no_grad():
        module(batch=step.micro_batches[0][0])
    assert not torch.equal(seen[-1], seen[0]), "there is dropout"


def test_undisturbed_puts_generators_modes_and_statistics_back():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Dropout())
    module[1].eval()
    before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state(), module[0].running_mean.clone())
    with undisturbed(module):
        module.eval()
        module.train()
        module(torch.rand(4, 3))
        random.random()
        np.random.rand()
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(module[0].running_mean, before[3])
    assert (module[0].training, module[1].training) == (True, False)


def test_a_task_that_cannot_embed_is_refused_with_those_that_can(shared: Path, tmp_path: Path):
    file = runs.run_of(shared, tmp_path, runs.toy("contrast"), task="token_classification")
    for command in ("check", "train"):
        outcome = tiny.command(command, file)
        assert outcome.code == 2
        said = " ".join((outcome.stdout + outcome.stderr).split())
        assert "method.name = contrast needs of its task: brings_head, embeds; task.name = token_classification" in said
        assert "lacks embeds; set task.name to one that has all (image_classification, text_classification)" in said
