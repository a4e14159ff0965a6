"""One rank of a launch: trains each job, notes what became of its model, and goes on from its middle if asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from launching import forget_after, listed_jobs
from torch import nn

from ftscale.base.logs import launched_rank
from ftscale.config import parse_config
from ftscale.distributed.runtime import Distributed
from ftscale.run.train import train

prepared: list[Distributed] = []


class Watched(Distributed):
    """Keeps what was prepared, to be looked at when the run is over."""

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, unused_weights: bool) -> None:
        super().prepare(module, optimizer, unused_weights=unused_weights)
        self.kind = type(self.module).__name__
        self.root = module
        self.before = digests(module)
        prepared.append(self)


def digests(module: nn.Module) -> dict[str, str]:
    """A hash of each weight and buffer as it lies in memory."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: hashlib.sha256(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in state.items()
        if value.ndim and value.numel()
    }


def note(folder: Path) -> None:
    """seen.json: the class that wraps the model, and which weights, trained or not, the run changed."""
    seen = prepared[-1]
    trained = {name for name, weight in seen.root.named_parameters() if weight.requires_grad}
    after = digests(seen.root)
    changed = {name for name in seen.before.keys() & after.keys() if seen.before[name] != after[name]}
    what = {
        "kind": seen.kind,
        "trained": sorted(trained),
        "frozen": len(after.keys() - trained),
        "changed_frozen": sorted(changed - trained),
        "changed_trained": sorted(changed & trained),
    }
    if launched_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(what))


def run_job(config: dict[str, Any], *, resume_from: int) -> None:
    whole = Path(config["run_folder"])
    train(parse_config(config, source="job"))
    note(whole)
    if resume_from:
        half = whole.with_name(whole.name + "-resumed")
        if launched_rank() == 0:
            forget_after(whole, half, step=resume_from)
        checkpoint = {**config["checkpoint"], "prove": "never"}
        again = {**config, "run_folder": str(half), "checkpoint": checkpoint}
        train(parse_config(again, source="job"), resume=True)


def main() -> None:
    torch.set_num_threads(1)
    import ftscale.run.train

    ftscale.run.train.Distributed = Watched
    for job in listed_jobs():
        run_job(job["config"], resume_from=job["resume_from"])


main()
