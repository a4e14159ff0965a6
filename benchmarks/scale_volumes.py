"""Counts what the ranks of a real run say to each other: started by scale_model.py, in each process of torchrun.

Usage: torchrun --nproc_per_node N benchmarks/scale_volumes.py JOBS.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

import ftscale.distributed.engine
from ftscale import train
from ftscale.base.logs import launched_rank
from ftscale.config.load import parse_config

FEW, MORE = 2, 6  # optimizer steps of two runs whose difference is what steps cost, without start and end
BUS = {"allreduce": 2.0, "allgather": 1.0, "reduce_scatter": 1.0, "broadcast": 1.0, "reduce": 1.0}
"""Times a tensor of n elements crosses a rank's link, for many ranks (as in NCCL's tests: bus bandwidth)."""


def main() -> None:
    """Write, for each job, elements and calls of each kind of collective per optimizer step."""
    with tempfile.TemporaryDirectory() as folder:
        keep_nothing(Path(folder))
        count_jobs()


def keep_nothing(folder: Path) -> None:
    """ZeRO-3 as a model beyond its limits meets it: no weight stays gathered from forward to backward.

    The shipped limits hold a thousand million weights, and the model here has a quarter of a million.
    """
    shipped = ftscale.distributed.engine.resource
    settings = json.loads(shipped("ds_configs", "zero3.json").read_text())
    limits = ("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance")
    settings["zero_optimization"] |= dict.fromkeys(limits, 0)
    (folder / "zero3.json").write_text(json.dumps(settings))
    ftscale.distributed.engine.resource = lambda *parts: (
        folder / parts[-1] if parts[-1] == "zero3.json" else shipped(*parts)
    )


def count_jobs() -> None:
    jobs, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).with_suffix(".out.json")
    found = []
    for job in jobs:
        few, more = (count(job["config"], steps=steps) for steps in (FEW, MORE))
        per_step = {kind: [(m - f) / (MORE - FEW) for f, m in zip(few[kind], more[kind], strict=True)] for kind in BUS}
        found.append({**job["about"], "per_step": per_step})
    if launched_rank() == 0:
        out.write_text(json.dumps(found))


def count(config: dict[str, Any], *, steps: int) -> dict[str, list[float]]:
    """Elements and calls of a run, by kind."""
    settings = {**config, "train": {**config["train"], "max_steps": steps}}
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        train(parse_config(settings, source="scale_volumes"), overwrite=True)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    elements: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        name = event.get("name", "")
        kind = next((kind for kind in BUS if name.startswith(("c10d::" + kind, "c10d::_" + kind))), None)
        if kind is not None:
            elements[kind] += size(kind, event["args"]["Input Dims"])
            calls[kind] += 1
    return {kind: [elements[kind], calls[kind]] for kind in BUS}


def size(kind: str, shapes: list[Any]) -> int:
    """Elements of the whole tensor: what all ranks have together after an all-gather, or before a reduce-scatter."""
    first, second = (numbers(shape) for shape in shapes[:2])
    return max(first, second) if kind in ("allgather", "reduce_scatter") else first


def numbers(shape: Any) -> int:
    """Elements of a tensor's shape, or of a list of shapes."""
    if not shape:
        return 0
    if isinstance(shape[0], list):
        return sum(map(numbers, shape))
    total = 1
    for length in shape:
        total *= length
    return total


if __name__ == "__main__":
    main()
