"""A frozen model beside the one that trains: the losses are plain torch's under every strategy, and nothing is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from tasks.berts import TEXTS, bert_run, save_bert
from tasks.test_toys import TOYS, train
from torch.nn.functional import kl_div

STRATEGIES = ("ddp", "zero2", "zero3")
WIDTH = 24
"""Of the teacher's hidden states: no weight of the student has such a side."""


def distil(shared: Path, work: Path, **changes: Any) -> Path:
    teacher = save_bert(work / "teacher", hidden=WIDTH, seed=2)
    task = {"file": str(TOYS / "distil.py"), "name": "distil", "teacher": {"name": str(teacher)}}
    return tiny.write_run(work, tiny.settings(shared, work, **bert_run(shared, work, task=task, **changes)))


def plain_losses(shared: Path, work: Path, *, steps: int) -> list[float]:
    """Of the same run in plain torch: one text at a time, without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    student, teacher = (
        AutoModelForSequenceClassification.from_pretrained(work / n).eval() for n in ("student", "teacher")
    )
    losses = []
    for _ in range(steps):
        distances = []
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                theirs = teacher(input_ids=ids).logits.log_softmax(dim=-1)
            distances.append(
                kl_div(student(input_ids=ids).logits.log_softmax(dim=-1), theirs, log_target=True, reduction="sum")
            )
        loss = torch.stack(distances).mean()
        student.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in student.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
        losses.append(loss.item())
    return losses


def sides(value: Any) -> set[int]:
    """The sides of every tensor inside."""
    if isinstance(value, torch.Tensor):
        return set(value.shape)
    if isinstance(value, dict):
        return set().union(*map(sides, value.values()))
    return set().union(*map(sides, value)) if isinstance(value, (list, tuple)) else set()


def numbers_in(folder: Path) -> tuple[int, set[int]]:
    """Of all files of a checkpoint: the bytes, and the sides of their tensors."""
    files = list(folder.rglob("*.pt"))
    found = [torch.load(path, map_location="cpu", weights_only=False) for path in files]
    return sum(path.stat().st_size for path in files), sides(found)


@pytest.mark.parametrize("strategy", ["single", "padded", *STRATEGIES])
def test_the_losses_are_plain_torchs(shared: Path, tmp_path: Path, strategy: str):
    file = distil(
        shared,
        tmp_path,
        **({"batch": {"global_size": 6, "micro_size": 3, "layout": "padded"}} if strategy == "padded" else {}),
    )
    two = strategy in STRATEGIES
    lines = train(file, *([f"distributed.strategy={strategy}"] if two else []), processes=2 if two else 1)
    expected = plain_losses(shared, tmp_path, steps=4)
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
    with safe_open(tmp_path / "run/model/model.safetensors", framework="pt") as saved:
        assert WIDTH not in {side for name in saved.keys() for side in saved.get_slice(name).get_shape()}  # noqa: SIM118
    size, found = numbers_in(tmp_path / "run/checkpoints/step-00000004")
    assert WIDTH not in found
    weights = sum(path.stat().st_size for path in (tmp_path / "student").glob("*.safetensors"))
    assert size < 3.5 * weights  # weights and ZeRO's masters of them; the teacher's would come on top
    *_, at_end = [line["loss"] for line in tiny.metrics(tmp_path / "run") if line["kind"] == "eval"]
    if strategy == "padded":
        done = tiny.command("evaluate", tmp_path / "run", "--trust-remote-code")
        assert done.code == 0, done.stderr
        assert json.loads(done.stdout)["loss"] == pytest.approx(at_end, rel=1e-5)


def test_a_companion_that_takes_no_flat_rows_has_all_rows_padded(shared: Path, tmp_path: Path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    file = distil(shared, tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=512, pad_token_id=2, **sizes)).save_pretrained(
        tmp_path / "teacher"
    )
    done = tiny.command("train", file, "train.max_steps=1")
    assert done.code == 0, done.stderr
    assert "padded by length" in done.stderr
    flat = tiny.command("train", file, "batch.layout=flat", f"run_folder={tmp_path / 'flat'}")
    assert flat.code == 2
    assert "batch.layout = flat cannot be used" in flat.stderr


def test_what_is_wrong_with_a_companion_is_told_before_anything_else(shared: Path, tmp_path: Path):
    file = distil(shared, tmp_path)
    done = tiny.command("check", file, f"task.teacher.name={tmp_path / 'techer'}")
    assert done.code == 1 or done.code == 2
    assert "the task's teacher: model.name" in done.stdout + done.stderr
    assert train(file, "train.max_steps=2")
    (tmp_path / "run/result.json").unlink()
    save_bert(tmp_path / "teacher", hidden=WIDTH, seed=3)
    again = tiny.command("train", file, "train.max_steps=2", "--resume")
    assert again.code == 2
    assert "task.teacher: model.safetensors has changed" in again.stderr


def test_plan_counts_it(shared: Path, tmp_path: Path):
    from ftscale.config import load_config
    from ftscale.plan.forecast import plan_run

    config = load_config(distil(shared, tmp_path))
    bytes_of_teacher = sum(path.stat().st_size for path in (tmp_path / "teacher").glob("*.safetensors"))
    whole = plan_run(config, gpus_per_node=2, compare=False).memory.kinds["companions"]
    assert whole == pytest.approx(bytes_of_teacher, rel=0.1)
    sharded = config.model_copy(update={"distributed": config.distributed.model_copy(update={"strategy": "zero3"})})
    assert plan_run(sharded, gpus_per_node=2, compare=False).memory.kinds["companions"] == pytest.approx(whole / 2)
