"""One rank of a launch that trains runs, some of which are stopped after some steps and go on each time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from launching import listed_jobs

from ftscale.base.logs import launched_rank
from ftscale.config import parse_config
from ftscale.distributed.runtime import Distributed
from ftscale.run.train import train
from ftscale.train.stop_request import StopRequest

steps = 0
"""Optimizer steps that this process has taken of a job, over all its starts."""
request = StopRequest()
moments: list[list[Any]] = []
"""What starts are stopped at, the next one first: the end of a step, or the saving of a model, after so many steps."""


class Stopping(Distributed):
    """The last rank alone is asked to stop."""

    def step(self, **moments: Callable[[], None]) -> float:
        global steps
        norm = super().step(**moments)
        steps += 1
        self.stop_at("step")
        return norm

    def full_state_dict(self) -> dict[str, torch.Tensor] | None:
        self.stop_at("save")
        return super().full_state_dict()

    def stop_at(self, what: str) -> None:
        if moments and moments[0] == [what, steps]:
            moments.pop(0)
            if launched_rank() == self.world_size - 1:
                request.reason = f"{what} {steps}"


def run_job(config: dict[str, Any], *, stop_at: list[list[Any]]) -> None:
    """Beside the run folder, `-stopped.json`: the status and the stages that have begun at each stop."""
    global request, steps, moments
    steps, moments, seen = 0, stop_at, []
    folder = Path(config["run_folder"])
    while True:
        request = StopRequest()
        result = train(parse_config(config, source="job"), resume=folder.exists(), stop_request=request)
        if result.status != "preempted":
            break
        status = json.loads((folder / "result.json").read_text())["status"]
        seen.append([status, steps, sorted(path.name for path in (folder / "stages").glob("*"))])
    if launched_rank() == 0:
        folder.with_name(f"{folder.name}-stopped.json").write_text(json.dumps(seen))


def main() -> None:
    torch.set_num_threads(1)
    import ftscale.run.train

    ftscale.run.train.Distributed = Stopping  # type: ignore[misc]
    for job in listed_jobs():
        run_job(job["config"], stop_at=job["stop_at"])


main()
