"""One rank of `runs.launch`: trains each job, and some once more from the checkpoint in their middle."""

from __future__ import annotations

from pathlib import Path

import torch
from launching import forget_after, listed_jobs

from ftscale.base.logs import launched_rank
from ftscale.config import parse_config
from ftscale.run.train import train


def main() -> None:
    torch.set_num_threads(1)
    for job in listed_jobs():
        config = job["config"]
        train(parse_config(config, source="job"))
        if job["resumes"]:
            whole = Path(config["run_folder"])
            half = whole.with_name(whole.name + "-resumed")
            if launched_rank() == 0:
                forget_after(whole, half, step=config["checkpoint"]["every"])
            train(parse_config({**config, "run_folder": str(half)}, source="job"), resume=True)


main()
