"""One rank of a launch that trains runs, some of which are stopped after some steps and go on each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from launching import listed_jobs

from ftscale.config import parse_config
from ftscale.distributed import Distributed
from ftscale.logs import launched_rank
from ftscale.run import train
from ftscale.train.preemption import StopRequest

steps = 0
"""Optimizer steps that this process has taken of a job, over all its starts."""
request = StopRequest()
stops: Sequence[int] = ()


class Stopping(Distributed):
    """The last rank alone is asked to stop, when a step is over."""

    def step(self, *, after_update: Callable[[], None] = lambda: None) -> float:
        global steps
        norm = super().step(after_update=after_update)
        steps += 1
        if steps in stops and launched_rank() == self.world_size - 1:
            request.reason = f"after step {steps}"
        return norm


def run_job(config: dict[str, Any], *, stop_after: Sequence[int]) -> None:
    global request, steps, stops
    steps, stops = 0, stop_after
    for number in range(len(stop_after) + 1):
        request = StopRequest()
        result = train(parse_config(config, source="job"), resume=number > 0, stop_request=request)
        assert result.status == ("completed" if number == len(stop_after) else "preempted"), result


def main() -> None:
    torch.set_num_threads(1)
    import ftscale.run

    ftscale.run.Distributed = Stopping  # type: ignore[misc]
    for job in listed_jobs():
        run_job(job["config"], stop_after=job["stop_after"])


main()
