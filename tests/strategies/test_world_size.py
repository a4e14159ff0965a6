"""Runs that go on with another number of processes, 1 to 2 to 4 to 3, are the run that one process makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launching
import needs
import pytest
import torch
from safetensors.torch import load_file
from strategies import jobs
from strategies.jobs import MAX_GRAD_NORM

from ftscale.train.manifest import complete_checkpoints

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("world_worker.py")
WORLDS = (1, 2, 4, 3)
EVERY, STEPS = 2, 8  # each link goes on from the checkpoint two steps after the one before; 7.5 steps are an epoch
STAGES = ("zero1", "zero2", "zero3") if needs.ALL else ()
"""Of chains that keep their strategy; the chain named stages has all three."""


@dataclass(frozen=True)
class Chain:
    """Runs of one configuration, each going on from the one before with the next number of processes."""

    config: dict[str, Any]
    strategies: list[str]
    first: str = ""
    """The chain whose first link is this one's too; "" = it has its own."""


@pytest.fixture(scope="module")
def done(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run, in one launch for each number of processes; folders are named by chain and number."""
    work = tmp_path_factory.mktemp("worlds")
    chains = chains_of(shared, work)
    for place, world in enumerate(WORLDS):
        launching.launch(WORKER, links(chains, place, work=work), processes=world, work=work)
    return work


def links(chains: dict[str, Chain], place: int, *, work: Path) -> Iterable[dict[str, Any]]:
    """The jobs of the chains' links at `place`."""
    listed = []
    for name, chain in chains.items():
        if place < len(chain.strategies) and (place or not chain.first):
            start = chain.first if chain.first and place == 1 else name
            before = f"{work}/{start}-{WORLDS[place - 1]}" if place else ""
            folder = {"run_folder": f"{work}/{name}-{WORLDS[place]}"}
            config = chain.config | folder | {"distributed": {"strategy": chain.strategies[place]}}
            listed.append({"config": config, "goes_on_from": before, "step": place * EVERY})
    return listed


def chains_of(shared: Path, work: Path) -> dict[str, Chain]:
    """Every chain by name."""
    training = {
        "train": {"max_steps": STEPS, "max_grad_norm": MAX_GRAD_NORM},
        "evaluation": {"every": STEPS // 2},
        "checkpoint": {"every": EVERY, "keep": 9, "prove": "never"},
        "batch": {"global_size": 8, "micro_size": 2},
    }
    full = jobs.captions(shared, work, **training)
    full["optimizer"] = full["optimizer"] | {"weight_decay": 0.1}  # of one of its two groups
    bf16 = full | {"train": training["train"] | {"precision": "bf16"}}
    lora = jobs.captions(shared, work, **jobs.lora() | training)
    momentum = full | {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
    worse = full | {  # than before the first step: that checkpoint, without any optimizer state, is the best one
        "optimizer": {"name": "sgd", "lr": 5.0},
        "schedule": {"name": "constant"},
        "train": {"max_steps": EVERY + 1, "max_grad_norm": MAX_GRAD_NORM},
        "evaluation": {"every": EVERY, "before": True},
    }
    stream = full | {"data": full["data"] | {"streaming": True, "shuffle_buffer": 24}}
    quantised = full | {"optimizer": {"name": "adamw_8bit", "lr": 0.002}}
    quantised["train"] = training["train"] | {"max_steps": EVERY + 1}
    return {
        "ddp": Chain(full, ["single", "ddp", "ddp", "ddp"]),
        "stream": Chain(stream, ["single", "ddp", "ddp", "ddp"] if needs.ALL else ["single", "ddp"]),
        **{strategy: Chain(full, [strategy] * 4) for strategy in STAGES},
        "stages": Chain(full, ["zero3", "zero1", "zero3", "zero2"]),
        "offload": Chain(full, ["zero2_offload", "zero3_offload"]),
        "bf16": Chain(bf16, ["zero3", "zero2", "zero3"]),
        "lora": Chain(lora, ["zero2", "zero2", "zero3"]),
        **({"momentum": Chain(momentum, ["zero2", "zero3"])} if needs.ALL else {}),
        "worse": Chain(worse, ["zero3", "zero2"]),
        "8bit": Chain(quantised, ["zero2", "zero2"]),
        "8bit-zero3": Chain(quantised, ["zero3", "zero3"]),
        "crossed": Chain(full, ["single", "zero2"], first="ddp"),
    }


EXACT = [
    *((chain, world) for chain in ("ddp", *STAGES, "stages") for world in WORLDS[1:]),
    *(("stream", world) for world in (WORLDS[1:] if needs.ALL else (2,))),
    ("offload", 2),
    ("lora", 2),
    ("lora", 4),
    *([("momentum", 2)] if needs.ALL else []),
]
REFERENCES = {"stream": "stream-1", "lora": "lora-1", "momentum": "momentum-1"}


@pytest.mark.parametrize(("chain", "world"), EXACT)
def test_it_goes_the_way_of_the_run_that_one_process_makes(done: Path, chain: str, world: int):
    one, other = done / REFERENCES.get(chain, "ddp-1"), done / f"{chain}-{world}"
    assert len(jobs.losses(other)) == STEPS
    assert jobs.losses(other) == pytest.approx(jobs.losses(one), rel=1e-5)
    assert jobs.grad_norms(other) == pytest.approx(jobs.grad_norms(one), rel=1e-5)
    for name in ("lr", "targets", "tokens"):
        assert [line[name] for line in jobs.train_lines(other)] == [line[name] for line in jobs.train_lines(one)]
    assert jobs.result(other)["metrics"] == pytest.approx(jobs.result(one)["metrics"], rel=1e-5)
    before, after = _weights(one), _weights(other)
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[name], before[name], rtol=1e-5, atol=1e-6) for name in after)


@pytest.mark.parametrize(("chain", "world"), EXACT)
def test_every_step_sees_the_rows_of_the_run_that_one_process_makes(done: Path, chain: str, world: int):
    one = jobs.seen(done / REFERENCES.get(chain, "ddp-1"))["rows"]
    rows = jobs.seen(done / f"{chain}-{world}")["rows"]
    assert len(one) == STEPS
    assert len(rows) == STEPS - EVERY * WORLDS.index(world)
    assert [sorted(step) for step in rows] == [sorted(step) for step in one[-len(rows) :]]
    assert len({tuple(row) for step in one for row in step}) > 50


@pytest.mark.parametrize("chain", [*STAGES, "stages"])
def test_each_link_began_from_a_checkpoint_of_another_number(done: Path, chain: str):
    made = [(item.step, item.manifest["world_size"]) for item in complete_checkpoints(done / f"{chain}-3/checkpoints")]
    assert made == [(2, 1), (4, 2), (6, 4), (8, 3)]
    assert not list((done / f"{chain}-3/checkpoints").glob(".*"))  # what was cut for it is gone


@pytest.mark.parametrize(
    ("chain", "world"),
    [(chain, world) for chain in ("bf16", "lora") for world in (2, 4)] + [(chain, 3) for chain in STAGES],
)
def test_float32_weights_are_taken_over_bit_by_bit(done: Path, chain: str, world: int):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    folder = done / f"{chain}-{world}"
    saved = folder / f"checkpoints/step-{EVERY * WORLDS.index(world):08d}"
    before, after = (
        get_fp32_state_dict_from_zero_checkpoint(path, tag="deepspeed", exclude_frozen_parameters=True)
        for path in (saved, folder / f"taken-over-{world}")
    )
    assert len(after) >= 20
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert all(weight.dtype == torch.float32 for weight in after.values())


@pytest.mark.parametrize("world", [2, 4])
def test_bf16_goes_on_as_near_as_its_rounding_allows(done: Path, world: int):
    one, other = done / "bf16-1", done / f"bf16-{world}"
    assert jobs.losses(other) == pytest.approx(jobs.losses(one), rel=0.01)
    assert all(weight.dtype == torch.bfloat16 for weight in _weights(other).values())


def test_the_best_checkpoint_can_be_one_of_another_number(done: Path, shared: Path):
    assert jobs.result(done / "worse-2")["best"]["step"] == 0
    before = load_file(shared / "weights/stories260K/model.safetensors")
    after = _weights(done / "worse-2")
    assert all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize(("chain", "stage"), [("8bit", 2), ("8bit-zero3", 3)])
def test_a_state_of_whole_shares_is_refused_before_training(done: Path, chain: str, stage: int):
    note = jobs.seen(done / f"{chain}-2")
    assert "its optimizer's state state1 belongs to each process's whole share" in note["refused"]
    assert note["refused"].endswith(f"resume with as many processes as made it (1, ZeRO stage {stage}).")
    assert note["rows"] == []


def test_another_kind_of_strategy_is_refused_before_training(done: Path):
    note = jobs.seen(done / "crossed-2")
    assert "distributed.strategy = zero2 cannot go on from checkpoint" in note["refused"]
    assert note["refused"].endswith("use single or ddp.")
    assert note["rows"] == []


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model" if (folder / "model/adapter_config.json").is_file() else "model"
    return load_file(folder / "model" / f"{name}.safetensors")
