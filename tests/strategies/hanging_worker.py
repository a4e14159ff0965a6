"""One of two ranks: the second hangs before its second step, the first cannot save, or each sees another folder."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from launching import forget_after
from torch import nn

from ftscale.base.logs import launched_rank
from ftscale.config import parse_config
from ftscale.config.schema import DistributedConfig, OptimizerConfig
from ftscale.distributed.runtime import Distributed
from ftscale.optim.optimizers import build_cpu_adam
from ftscale.run.train import train

FOREVER_S = 3000.0  # the default time-out of DeepSpeed's own group is 1,800


def main() -> None:
    [job] = json.loads(Path(sys.argv[1]).read_text())
    if "config" in job:
        resume_while_it_looks_finished(job["config"])
        return
    about = DistributedConfig(strategy=job["strategy"], timeout_s=job["timeout_s"])
    distributed = Distributed(about, precision="fp32", max_grad_norm=1.0)
    module = nn.Linear(4, 1)
    offloads = job["strategy"].endswith("_offload")
    optimizer = build_cpu_adam(module, OptimizerConfig()) if offloads else torch.optim.AdamW(module.parameters())
    distributed.prepare(module, optimizer, unused_weights=False)
    if "folder" in job:
        save(distributed, Path(job["folder"]), Path(job["out"]))
        return
    for step in range(2):
        if step == 1 and distributed.rank == 1:
            time.sleep(FOREVER_S)
        try:
            distributed.backward(distributed.module(torch.ones(2, 4)).sum(), last=True)
            distributed.step()
        except RuntimeError:
            Path(job["out"]).write_text(f"rank {distributed.rank}, step {step}")
            raise


def resume_while_it_looks_finished(config: dict[str, Any]) -> None:
    """The second rank comes to the folder while it still holds the result of the run, the first one when it is gone."""
    train(parse_config(config, source="job"))
    whole = Path(config["run_folder"])
    half, ready = whole.with_name("half"), whole.with_name("ready")
    if launched_rank() == 0:
        shutil.copytree(whole, half)
        ready.touch()
        time.sleep(3)
        shutil.rmtree(half)
        forget_after(whole, half, step=1)
    while not ready.exists():
        time.sleep(0.05)
    train(parse_config({**config, "run_folder": str(half)}, source="job"), resume=True)


def save(distributed: Distributed, folder: Path, out: Path) -> None:
    """DeepSpeed cannot write its scripts; then the ranks must still understand each other."""
    if distributed.is_main:
        (folder / "zero_to_fp32.py").mkdir(parents=True)
    distributed.barrier()
    try:
        distributed.save_state(folder, lambda value, path: None)
        failed = False
    except OSError:
        failed = True
    failed_on = distributed.gather_objects(failed)
    if distributed.is_main:
        libraries = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
        operators = sorted(path.stem for path in libraries if "torch_extensions" in path.parts)
        out.write_text(json.dumps({"failed_on": failed_on, "operators": operators}))


if __name__ == "__main__":
    main()
