"""Runs that go on with another number of processes, 1 to 2 to 4 to 3, are the run that one process makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from safetensors.torch import load_file
from strategies import jobs
from strategies.jobs import MAX_GRAD_NORM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

WORKER = Path(__file__).with_name("world_worker.py")
WORLDS = (1, 2, 4, 3)
EVERY, STEPS = 2, 8
ZERO = ("zero1", "zero2", "zero3")


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run, in one launch for each number of processes; folders by chain and number."""
    work = tmp_path_factory.mktemp("worlds")
    chains = chains_of(shared, work)
    for place, world in enumerate(WORLDS):
        listed = []
        for name, (config, strategies) in chains.items():
            if place < len(strategies):
                before = f"{work}/{name}-{WORLDS[place - 1]}" if place else ""
                sections = {"run_folder": f"{work}/{name}-{world}", "distributed": {"strategy": strategies[place]}}
                listed.append({"config": config | sections, "goes_on_from": before, "step": place * EVERY})
        launching.launch(WORKER, listed, processes=world, work=work)
    return work


def chains_of(shared: Path, work: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Names to a configuration and the strategy of each link."""
    training = {
        "train": {"max_steps": STEPS, "max_grad_norm": MAX_GRAD_NORM},
        "evaluation": {"every": EVERY},
        "checkpoint": {"every": EVERY, "keep": 9},
        "batch": {"global_size": 8, "micro_size": 2},
    }
    full = jobs.captions(shared, work, **training)
    full["optimizer"] = full["optimizer"] | {"weight_decay": 0.1}  # of one group of two
    bf16 = full | {"train": {**training["train"], "precision": "bf16"}}
    lora = jobs.captions(shared, work, **jobs.lora() | training)
    sgd = full | {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
    chains = {"ddp": (full, ["single", "ddp", "ddp", "ddp"])}
    for strategy in ZERO:
        chains[strategy] = (full, [strategy] * 4)
    chains["bf16-zero2"] = (bf16, ["zero2"] * 3)
    chains["bf16-zero3"] = (bf16, ["zero3"] * 3)
    chains["lora-single"] = (lora, ["single"])
    chains["lora-zero2"] = (lora, ["zero2"] * 3)
    chains["lora-zero3"] = (lora, ["zero3"] * 3)
    chains["sgd-single"] = (sgd, ["single"])
    chains["sgd-zero2"] = (sgd, ["zero2"] * 2)
    chains["stages"] = (full, ["zero3", "zero1", "zero3", "zero2"])
    chains["offload"] = (full, ["zero2_offload", "zero3_offload"])
    return chains


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("chain", ["ddp", *ZERO, "stages", "offload"])
def test_it_goes_the_way_of_the_run_that_one_process_makes(done: Path, chain: str, world: int):
    same_run(done, chain, world, reference="ddp-1")


def same_run(done: Path, chain: str, world: int, *, reference: str) -> None:
    one, other = done / reference, done / f"{chain}-{world}"
    assert len(jobs.losses(other)) == STEPS
    assert jobs.losses(other) == pytest.approx(jobs.losses(one), rel=1e-5)
    assert jobs.grad_norms(other) == pytest.approx(jobs.grad_norms(one), rel=1e-5)
    for name in ("lr", "targets", "tokens"):
        assert [line[name] for line in jobs.train_lines(other)] == [line[name] for line in jobs.train_lines(one)]
