"""One rank of `runs.launch`: trains each job, and once more from the checkpoint in its middle."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from ftscale.config import parse_config
from ftscale.logs import launched_rank
from ftscale.run import train

HALF = 10


def forget_second_half(whole: Path, half: Path) -> None:
    """A copy of the run as a kill after the checkpoint in its middle would have left it."""
    shutil.copytree(whole, half)
    (half / "result.json").unlink()
    shutil.rmtree(half / "model")
    for folder in (half / "checkpoints").iterdir():
        if folder.name != f"step-{HALF:08d}":
            shutil.rmtree(folder)


def main() -> None:
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        whole = Path(job["run_folder"])
        half = whole.with_name(whole.name + "-resumed")
        train(parse_config(job, source="job"))
        if launched_rank() == 0:
            forget_second_half(whole, half)
        train(parse_config({**job, "run_folder": str(half)}, source="job"), resume=True)


main()
