"""One of two ranks: saves a checkpoint under ZeRO, and goes on from copies with a pickle in the place of a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from launching import listed_jobs
from planted import plant, reseal
from torch import nn

from ftscale.base.errors import UserError
from ftscale.config.schema import DistributedConfig
from ftscale.distributed.runtime import Distributed
from ftscale.train.checkpoint import Saver, load_checkpoint, load_more
from ftscale.train.manifest import Checkpoint, read_checkpoint

OTHER = {"zero1": "zero3", "zero2": "zero1", "zero3": "zero2"}
"""The stage that takes over from each, so that its shards are cut anew."""


def main() -> None:
    for job in listed_jobs():
        work, strategy = Path(job["work"]), job["strategy"]
        distributed = engine(strategy)
        losses(distributed)
        save(work, distributed)
        found: dict[str, Any] = {"after": losses(distributed), "same": tries(work, distributed)}
        distributed.close()
        distributed = engine(OTHER[strategy])
        found["other"] = tries(work, distributed)
        if distributed.is_main:
            (work / "found.json").write_text(json.dumps(found))
        distributed.close()


def engine(strategy: str) -> Distributed:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    distributed = Distributed(DistributedConfig(strategy=strategy), precision="fp32", max_grad_norm=1.0)
    distributed.prepare(module, torch.optim.AdamW(module.parameters(), lr=0.1), unused_weights=False)
    return distributed


def losses(distributed: Distributed) -> list[float]:
    """Of two steps on numbers that each rank draws."""
    found = []
    for _ in range(2):
        loss = (distributed.module(torch.rand(3, 4)) - 1).square().sum()
        distributed.backward(loss, last=True)
        distributed.step()
        found.append(distributed.sum({"loss": loss.item()})["loss"])
    return found


def save(work: Path, distributed: Distributed) -> None:
    identity = {"run_id": "this", "config_digest": "d", "versions": {}}
    more = {"more": torch.ones(1)}
    saver = Saver(work, distributed, identity=identity, keep=2, asynchronous=False, more=lambda: more)
    saver.save(1, {"loop": 1})


def tries(work: Path, distributed: Distributed) -> dict[str, Any]:
    """By kind of file: what each rank was told where it was a pickle, and whether that ran; and the losses after all.

    All ranks' files of a kind are planted at once, since each rank reads its own and would else wait for the other.
    """
    whole, folder = work / "step-00000001", work / "tried/step-00000001"
    found: dict[str, Any] = {}
    for kind in sorted(kinds := {kind_of(name) for name in names(whole)}):
        mark = work / f"ran-{distributed.strategy.name}-{kind}"
        if distributed.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(whole, folder)
            for name in names(folder):
                if kind_of(name) == kind:
                    plant(folder / name, mark)
            reseal(folder)
        distributed.barrier()
        try:
            load(folder, distributed)
            said = ""
        except UserError as error:
            said = str(error)
        found[kind] = {"said": distributed.gather_objects(said), "ran": mark.exists()}
    assert kinds == {"model_states", "more", "optim_states", "random"}
    load(whole, distributed)
    return {**found, "losses": losses(distributed)}


def load(folder: Path, distributed: Distributed) -> None:
    checkpoint = read_checkpoint(folder)
    assert isinstance(checkpoint, Checkpoint), checkpoint
    load_checkpoint(checkpoint, distributed)
    load_more(checkpoint)


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".pt", ".safetensors")]


def kind_of(name: str) -> str:
    return next(kind for kind in ("optim_states", "model_states", "random", "more") if kind in name)


main()
