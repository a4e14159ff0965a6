"""One rank of `runs.launch`: trains each job, and once more from the checkpoint in its middle."""

from __future__ import annotations

from pathlib import Path

import torch
from launching import forget_after, listed_jobs

from ftscale.config import parse_config
from ftscale.logs import launched_rank
from ftscale.run import train

HALF = 10


def main() -> None:
    torch.set_num_threads(1)
    for job in listed_jobs():
        whole = Path(job["run_folder"])
        half = whole.with_name(whole.name + "-resumed")
        train(parse_config(job, source="job"))
        if launched_rank() == 0:
            forget_after(whole, half, step=HALF)
        train(parse_config({**job, "run_folder": str(half)}, source="job"), resume=True)


main()
