"""Columns that a frozen model computes once: the cache, its key, and what reaches the loss."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
import tiny
import torch
from tasks.berts import TEXTS, bert_run, save_bert
from tasks.test_toys import TOYS, train

from ftscale.config import own_task
from ftscale.config.yaml_text import read_yaml

SLOW_WRITER = Path(__file__).with_name("computed_worker.py")
WIDTH = 32


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Path:
    teacher = save_bert(tmp_path / "teacher", hidden=WIDTH, seed=2, auto_class="AutoModel")
    computed()
    task = {"file": str(TOYS / "features.py"), "name": "features", "teacher": str(teacher)}
    return tiny.write_run(tmp_path, tiny.settings(shared, tmp_path, **bert_run(shared, tmp_path, task=task)))


def computed() -> int:
    """Samples that were computed in this process since the last call."""
    numbers: list[int] = own_task.load_file(str(TOYS / "features.py"), section="task").computed
    total = sum(numbers)
    numbers.clear()
    return total


def columns(cache: Path) -> dict[str, np.ndarray]:
    return {path.parent.name: np.load(path) for path in sorted(cache.glob("*/values.npy"))}


def same_losses(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    return [line["loss"] for line in ours] == [line["loss"] for line in theirs]


def plain_features(shared: Path, teacher: Path) -> list[torch.Tensor]:
    """By plain transformers, a text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(shared / "weights/stories260K"),
        AutoModel.from_pretrained(teacher).eval(),
    )
    with torch.no_grad():
        return [
            model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0].mean(dim=0)
            for text in TEXTS
        ]


def test_values_are_plain_transformers_computed_once_and_read_by_any_number_of_ranks(
    run: Path, shared: Path, tmp_path: Path
):
    lines = train(run)
    assert computed() == 2 * 2 * len(TEXTS)  # of data.train and data.eval
    values = columns(tmp_path / "cache")
    assert len(values) == 2
    expected = torch.stack(plain_features(shared, tmp_path / "teacher") * 2)
    for found in values.values():
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-6)
    again = train(run, f"run_folder={tmp_path / 'again'}")
    assert computed() == 0
    assert same_losses(again, lines)
    shutil.copytree(tmp_path / "run", tmp_path / "half")
    (tmp_path / "half/result.json").unlink()
    shutil.rmtree(tmp_path / "half/checkpoints/step-00000004")
    assert same_losses(train(run, "--resume", f"run_folder={tmp_path / 'half'}"), lines)
    assert computed() == 0
    padded = train(run, "batch.layout=padded", f"run_folder={tmp_path / 'padded'}")
    assert [line["loss"] for line in padded] == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    evaluated = tiny.command("evaluate", tmp_path / "run", "--trust-remote-code")
    assert evaluated.code == 0, evaluated.stderr

    two = ("distributed.strategy=ddp", "batch.micro_size=2")
    done = tiny.forked("train", run, *two, f"run_folder={tmp_path / 'two'}", processes=2)
    assert done.code == 0, done.stderr
    assert "computing" not in done.stderr
    losses = [line["loss"] for line in tiny.steps(tmp_path / "two")]
    assert losses == pytest.approx([line["loss"] for line in lines], rel=1e-5)
    changes = {
        "distributed": {"strategy": "zero3"},
        "run_folder": str(tmp_path / "three"),
        "data": {**read_yaml(run.read_text(), source="test")["data"], "cache_dir": str(tmp_path / "c")},
    }
    job = {**read_yaml(run.read_text(), source="test"), **changes}
    done = launching.try_to_launch(SLOW_WRITER, [job], processes=2, work=tmp_path / "jobs")
    assert done.returncode == 0, done.stderr
    assert "computing features of 12 samples" in done.stderr
    other = columns(tmp_path / "c")
    assert other.keys() == values.keys()
    assert all((other[name] == values[name]).all() for name in values)


def test_another_model_or_setting_is_another_column(run: Path, tmp_path: Path):
    one_step = ("train.max_steps=1", "data.eval=[]")
    train(run, *one_step)
    assert computed() == 2 * len(TEXTS)
    train(run, *one_step, f"run_folder={tmp_path / 'scaled'}", "task.scale=2")
    assert computed() == 2 * len(TEXTS)
    first, second = columns(tmp_path / "cache").values()
    assert (first == 2 * second).all() or (second == 2 * first).all()
    save_bert(tmp_path / "teacher", hidden=WIDTH, seed=3, auto_class="AutoModel")
    train(run, *one_step, f"run_folder={tmp_path / 'other'}")
    assert computed() == 2 * len(TEXTS)
    assert len(columns(tmp_path / "cache")) == 3


def test_a_stream_is_refused(run: Path):
    done = tiny.command("check", run, "data.streaming=true", "data.shuffle=true")
    assert "data.streaming = true does not go with task = features, which computes features of prepared rows once" in (
        done.stdout + done.stderr
    )
    deep = tiny.command("check", run, "--deep")
    assert deep.code == 0, deep.stdout + deep.stderr
    assert computed() == 2 * 2


@pytest.mark.campaign
def test_a_plan_is_made(run: Path):
    planned = tiny.command("plan", run)
    assert planned.code == 0, planned.stdout + planned.stderr
