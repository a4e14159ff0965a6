"""zero3_nvme: weights and optimizer states on a disk, read and written by DeepSpeed's asynchronous input and output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import needs
import pytest
import torch
from safetensors.torch import load_file
from strategies import jobs
from strategies.jobs import HALF, Jobs

from ftscale.train.manifest import complete_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.nvme]


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every run, made in two launches: one process, and two."""
    _need_libaio()
    work = tmp_path_factory.mktemp("nvme")
    plain = jobs.captions(shared, work)
    wide = plain | {
        "model": {"name": str(_wide_llama(shared, work)), "init": "random"},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "train": {**plain["train"], "activation_checkpointing": True},
        "checkpoint": {**plain["checkpoint"], "prove": "final"},
    }
    rising = plain | {
        "optimizer": {"name": "adamw", "lr": 0.06, "eps": 1e-3},
        "schedule": {"name": "constant_with_warmup", "warmup_steps": 4},
        "train": {"max_steps": 5, "max_grad_norm": 0},
        "evaluation": {"every": 1},
    }
    worse = rising | {
        "optimizer": {"name": "adamw", "lr": 5.0},
        "schedule": {"name": "constant"},
        "train": {"max_steps": 1, "max_grad_norm": 0},
        "evaluation": {"before": True},
    }
    lora = jobs.captions(shared, work, **jobs.lora())
    runs = Jobs(work)
    runs.add("wide-single", wide, strategy="single", processes=1)
    runs.add("lora-single", lora, strategy="single", processes=1)
    runs.add("wide", wide, strategy="zero3_nvme", resume_from=HALF)
    runs.add("lora", lora, strategy="zero3_nvme")
    runs.add("rising", rising, strategy="zero3_nvme")
    runs.add("worse", worse, strategy="zero3_nvme")
    runs.run()
    return runs.folders


@pytest.mark.parametrize("name", ["wide", "lora"])
def test_weights_on_a_disk_go_the_way_of_one_process(done: dict[str, Path], name: str):
    single, other = done[f"{name}-single"], done[name]
    assert jobs.losses(other) == pytest.approx(jobs.losses(single), rel=1e-5)
    assert jobs.grad_norms(other) == pytest.approx(jobs.grad_norms(single), rel=1e-4)


def test_the_states_were_large_enough_to_be_swapped_and_nothing_of_them_is_left(done: dict[str, Path]):
    swapped = done["wide"] / f"checkpoints/step-{HALF:08d}/deepspeed/rank-00000/sub-group-00000.pt"
    assert swapped.stat().st_size > 3 * 2**20  # the weights and two moments
    assert list((done["wide"].parent / "nvme").iterdir()) == []


def test_a_resumed_second_half_is_the_uninterrupted_one(done: dict[str, Path]):
    whole = done["wide"]
    half = whole.with_name("wide-resumed")
    assert [item.step for item in complete_checkpoints(whole / "checkpoints")] == [HALF, jobs.STEPS]
    assert jobs.losses(half) == pytest.approx(jobs.losses(whole), rel=1e-6)
    assert jobs.grad_norms(half) == pytest.approx(jobs.grad_norms(whole), rel=1e-5)


def test_a_run_ends_with_the_weights_of_its_best_evaluation(done: dict[str, Path]):
    folder = done["rising"]
    found = [line["loss"] for line in jobs.lines(folder) if line["kind"] == "eval" and "loss" in line]
    result = jobs.result(folder)
    assert result["best"]["value"] == min(found) < found[-1] / 1.01
    assert result["metrics"]["loss"] == pytest.approx(min(found), rel=1e-6)


def test_the_best_weights_can_be_those_before_the_first_step(done: dict[str, Path], shared: Path):
    assert jobs.result(done["worse"])["best"]["step"] == 0
    before = load_file(shared / "weights/stories260K/model.safetensors")
    after = load_file(done["worse"] / "model/model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_a_fresh_process_proves_the_saved_model(done: dict[str, Path]):
    [event] = [line for line in jobs.lines(done["wide"]) if line.get("event") == "proved"]
    assert event["largest_difference"] <= event["tolerance"]


def _need_libaio() -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        needs.missing("needs libaio and its headers (Debian's libaio-dev), for DeepSpeed's disk access")


def _wide_llama(shared: Path, work: Path) -> Path:
    """A Llama whose shares of two ranks are past the 1 MiB under which DeepSpeed leaves states in memory."""
    model = work / "wide-llama"
    shutil.copytree(shared / "weights/stories260K", model, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_size": 512, "head_dim": 64, "intermediate_size": 1024, "num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps(config))
    return model
