"""One of two ranks under a strategy: the second one hangs in front of its second step, or the first one cannot save."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from ftscale.config.schema import DistributedConfig
from ftscale.distributed import Distributed

FOREVER_S = 200.0


def main() -> None:
    [job] = json.loads(Path(sys.argv[1]).read_text())
    about = DistributedConfig(strategy=job["strategy"], timeout_s=job["timeout_s"])
    distributed = Distributed(about, precision="fp32", max_grad_norm=1.0)
    module = nn.Linear(4, 1)
    distributed.prepare(module, torch.optim.AdamW(module.parameters()), unused_weights=False)
    if "folder" in job:
        save(distributed, Path(job["folder"]), Path(job["out"]))
        return
    for step in range(2):
        if step == 1 and distributed.rank == 1:
            time.sleep(FOREVER_S)
        began = time.monotonic()
        try:
            distributed.backward(distributed.module(torch.ones(2, 4)).sum(), last=True)
            distributed.step()
        except RuntimeError:
            Path(job["out"]).write_text(str(time.monotonic() - began))
            raise


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
        out.write_text(json.dumps(failed_on))


if __name__ == "__main__":
    main()
