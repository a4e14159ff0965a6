"""One of two ranks under a strategy; the second one hangs in front of its second step."""

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


if __name__ == "__main__":
    main()
