"""Where the time of training steps goes, and how near the matrix products come to what the machine can do.

    python benchmarks/profile_steps.py [--only NAME ...] [--threads 2]

Each work of benchmarks/speed.py trains under torch.profiler for a few steps and for some more; the difference is
that of steps alone, without the start. Results go into benchmarks/results/profile.json, a work at a time:

- `shares`: of the operators' own time, by kind of operator, largest first. The profiler's own time makes many small
  operators seem larger than they are;
- `gflop_per_step`: of products, convolutions and fused attention, as torch.utils.flop_counter counts them;
- `gflop_per_s`: these over the time of a step without a profiler; `attainable_gflop_per_s`: of one product of large
  square matrices in the same type on the same threads.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from speed import hardware, in_a_process, versions
from speed_works import FOLDER, ROOT, make_inputs, prepare, works

RESULTS = ROOT / "benchmarks/results/profile.json"
FEW, MORE = 2, 8
"""Optimizer steps of the two runs."""
LARGE = 2048
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear"),
    "convolutions": ("convolution", "mkldnn_convolution", "convolution_backward", "_slow_conv2d_forward"),
    "fused attention": ("_scaled_dot_product_flash_attention_for_cpu",),
    "softmax": ("_softmax", "_log_softmax"),
    "norms": ("native_layer_norm", "native_batch_norm", "_fused_rms_norm", "rsqrt"),
    "activations": ("gelu", "silu", "relu", "tanh", "sigmoid", "hardtanh", "threshold"),
    "copies": ("copy_", "cat", "split", "clone", "contiguous", "fill_", "zero_", "stack"),
    "masks of dropout": ("bernoulli_", "bitwise_right_shift", "bitwise_and_", "bitwise_xor_", "lt", "neg_"),
    "the optimizer": ("_fused_adamw_", "_fused_adam_", "_foreach"),
    "sums and products by element": ("add", "mul", "div", "sub", "sum", "mean", "pow", "neg", "where", "rsub"),
    "gathers": ("embedding", "index", "index_add", "index_select", "gather", "scatter", "embedding_dense"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=works(), default=list(works()))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    in_a_process(make_inputs)
    for name in arguments.only:
        record = profiled(name)
        record |= {
            "command": f"python benchmarks/profile_steps.py --only {name} --threads {arguments.threads}",
            "hardware": hardware(),
            "versions": versions(),
        }
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = record
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(name, json.dumps({key: record[key] for key in ("shares", "gflop_per_s", "attainable_gflop_per_s")}))


def profiled(name: str) -> dict[str, Any]:
    """What the steps of a work consist of."""
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    run = {**works()[name].run, "run_folder": str(folder / "run")}
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    in_a_process(prepare, folder)
    times = {steps: in_another(operators, folder, steps) for steps in (FEW, MORE)}
    flop = {steps: in_another(counted_flop, folder, steps) for steps in (FEW, MORE)}
    step_s = in_another(plain_step, folder, MORE)
    of_steps = {key: value - times[FEW].get(key, 0.0) for key, value in times[MORE].items()}
    kinds: Counter[str] = Counter()
    for key, value in of_steps.items():
        kinds[kind_of(key)] += max(value, 0.0)
    total = kinds.total()
    gflop = (flop[MORE] - flop[FEW]) / (MORE - FEW) / 1e9
    dtype = "bfloat16" if run["train"].get("precision") == "bf16" else "float32"
    calls = sorted(of_steps.items(), key=lambda item: -item[1])[:20]
    return {
        "shares": {kind: round(value / total, 3) for kind, value in kinds.most_common() if value / total >= 0.005},
        "largest_operators": {key: round(value / total, 3) for key, value in calls},
        "step_s": round(step_s, 4),
        "gflop_per_step": round(gflop, 1),
        "gflop_per_s": round(gflop / step_s, 1),
        "attainable_gflop_per_s": round(in_another(largest_rate, dtype), 1),
        "dtype": dtype,
    }


def kind_of(operator: str) -> str:
    """The kind that an operator counts to, its backward too."""
    name = operator.removeprefix("aten::")
    plain = name.removesuffix("_backward").removesuffix("_backward_data").removesuffix("_dense")
    for kind, names in KINDS.items():
        if name in names or plain in names or plain.rstrip("_") in names:
            return kind
        if kind == "the optimizer" and name.startswith(names):
            return kind
    return "others"


# ---------------------------------------------------------------- in processes of their own


def in_another(function: Any, *arguments: Any) -> Any:
    """What a function returns in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def train_for(folder: Path, steps: int) -> None:
    from ftscale import train
    from ftscale.config import load_config

    config = load_config(
        folder / "run.yaml",
        [
            f"train.max_steps={steps}",
            "checkpoint.prove=never",
            "report.page=false",
            "data.eval=[]",
            "schedule.warmup_steps=0",
        ],
    )
    train(config, overwrite=True)


def operators(folder: Path, steps: int) -> dict[str, float]:
    """Seconds of each operator's own time, over a whole run."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        train_for(folder, steps)
    return {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}


def counted_flop(folder: Path, steps: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        train_for(folder, steps)
    return counter.get_total_flops()


def plain_step(folder: Path, steps: int) -> float:
    """Seconds of a step, the median of all but the first two."""
    train_for(folder, steps)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return median(line["step_s"] for line in lines if line["kind"] == "train" and line["step"] > FEW)


def largest_rate(dtype: str) -> float:
    """GFLOP/s of a product of square matrices: the best of ten."""
    import torch

    left, right = (torch.randn(LARGE, LARGE).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * LARGE**3 / best / 1e9


if __name__ == "__main__":
    main()
