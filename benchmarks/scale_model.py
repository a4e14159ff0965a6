"""Throughput and efficiency on 1 to 1,024 GPUs, from counted communication and published hardware and scaling figures.

    python benchmarks/scale_model.py --shared ../shared            # counts with 2 and 4 ranks, predicts, checks
    python benchmarks/scale_model.py --counted                     # the counts of the last time
    python benchmarks/scale_model.py --counted --picture docs/scaling.png   # needs: pip install matplotlib

The model. A step of m micro-batches takes their arithmetic, plus what communication does not hide behind it:

    arithmetic      (6 x trained + 4 x frozen + 2 x recomputed) weights x tokens / (peak x busy)
    communication   bus bytes x (n - 1) / n / bandwidth + calls x latency x log2(n)
    step            arithmetic + max(0, communication - hidden x arithmetic)

Bus bytes are the counted elements of each collective (an all-reduce counts twice) at the type's width. The bandwidth is
NVLink's within a node, and the node's network shared by its GPUs beyond: a ring leaves a node once. `busy` of the two
generations of GPUs and `hidden` are fitted to the published figures of `checks`, all together (least squares of the
logarithms); how far each figure is off stays in the results. Bandwidths are in data sheets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/scale.json"
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
RANKS, MICRO_BATCHES = (2, 4), (1, 2)
WEIGHTS, LAYERS, ADAPTER = 260_032, 5, 5 * 8 * (64 + 64 + 64 + 32)
"""Of the Llama that is counted, and of its adapter: q is 64 x 64, v 32 x 64, each with two matrices of rank 8."""
BUS = {"allreduce": 2.0, "allgather": 1.0, "reduce_scatter": 1.0, "broadcast": 1.0, "reduce": 1.0}
GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

SHARE = 0.8
"""Of a link's data sheet figure, what collectives of many megabytes reach."""
LATENCY_S = 15e-6
"""Of one stage of a collective between nodes."""
OPTIMIZER_BYTES = 16
"""Of a trained weight in mixed precision: two of weight, two of gradient, twelve of optimizer and master weight."""


@dataclass(frozen=True)
class Fitted:
    """What no data sheet tells."""

    busy: float
    """Share of the peak that matrix products reach on A100 and H100 in a step without communication."""
    busy_v100: float
    """The same on V100."""
    hidden: float
    """Of the arithmetic of a step, the part during which communication runs."""

    def busy_on(self, cluster: Cluster) -> float:
        return self.busy_v100 if cluster.name.startswith("V100") else self.busy


@dataclass(frozen=True)
class Cluster:
    """GPUs and what joins them; FLOP/s dense in bf16 (V100: fp16), bytes/s one way."""

    name: str
    peak: float
    memory: float
    nvlink: float
    network: float
    """Of a whole node."""
    node: int = 8
    source: str = ""


@dataclass(frozen=True)
class Model:
    """A decoder; `lora` counts the trained weights of an adapter of rank 16 on all linear layers."""

    name: str
    weights: float
    layers: int
    lora: float


A100 = Cluster(
    "A100 80 GB, 8 x 200 Gb/s", 312e12, 80e9, 300e9, 8 * 25e9, source="NVIDIA A100 data sheet; Azure NDm A100 v4"
)
H100 = Cluster("H100 SXM, 8 x 400 Gb/s", 989e12, 80e9, 450e9, 8 * 50e9, source="NVIDIA H100 data sheet; DGX H100")
A100_SLOW = Cluster("A100 80 GB, 100 Gb/s", 312e12, 80e9, 300e9, 12.5e9, source="a node with one 100 Gb/s card")
V100_400 = Cluster("V100 DGX-2, 4 x 100 Gb/s", 125e12, 32e9, 150e9, 4 * 12.5e9, node=16, source="ZeRO++ article")
V100_100 = Cluster("V100 DGX-2, 100 Gb/s", 125e12, 32e9, 150e9, 12.5e9, node=16, source="ZeRO++ article")
MODELS = (
    Model("350 M", 350e6, 24, 6.4e6),
    Model("7 B", 6.7e9, 32, 40e6),
    Model("70 B", 69e9, 80, 207e6),
)


# ---------------------------------------------------------------- counted


def count(shared: Path) -> list[dict[str, Any]]:
    """Collectives a step of real runs: every strategy, full and LoRA, 2 and 4 ranks, 1 and 2 micro-batches."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in RANKS:
            jobs = Path(folder) / f"jobs-{ranks}.json"
            jobs.write_text(json.dumps(list(count_jobs(shared, Path(folder), ranks=ranks))))
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
            worker = str(ROOT / "benchmarks/scale_volumes.py")
            subprocess.run([*launcher, worker, str(jobs)], env=environment, check=True)
            found += json.loads(jobs.with_suffix(".out.json").read_text())
    return found


def count_jobs(shared: Path, folder: Path, *, ranks: int) -> Any:
    """Runs of a Llama of 260,032 weights on captions, with what they are."""
    for strategy in STRATEGIES:
        for lora in (False, True):
            for micro_batches in MICRO_BATCHES:
                config = {
                    "task": {"name": "causal_lm", "max_length": 64},
                    "run_folder": str(folder / "run"),
                    "model": str(shared / "weights/stories260K"),
                    "data": {
                        "train": {
                            "path": str(shared / "data/translation/multi30k_de-en/train.en.gz"),
                            "format": "text",
                            "limit": 400,
                        },
                        "cache_dir": str(folder / "cache"),
                    },
                    "batch": {"global_size": 4 * ranks, "micro_size": 4 // micro_batches},
                    "train": {},
                    "checkpoint": {"every": 1000, "prove": "never"},
                    "distributed": {"strategy": strategy},
                }
                if lora:
                    config["adapter"] = {"method": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]}
                about = {"strategy": strategy, "lora": lora, "ranks": ranks, "micro_batches": micro_batches}
                yield {"about": about, "config": config}


def volumes(counted: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each strategy, bus elements per trained and per frozen weight: what a step costs and each micro-batch adds.

    Of four ranks. Two equations, two unknowns: one run trains all weights, the other an adapter beside frozen ones.
    """
    found = {}
    for strategy in STRATEGIES:
        rows = {
            (row["lora"], row["ranks"], row["micro_batches"]): row["per_step"]
            for row in counted
            if row["strategy"] == strategy
        }
        bus = {key: sum(BUS[kind] * values[0] for kind, values in row.items()) for key, row in rows.items()}
        calls = {key: sum(values[1] for values in row.values()) for key, row in rows.items()}
        each = {lora: bus[lora, 4, 2] - bus[lora, 4, 1] for lora in (False, True)}
        once = {lora: bus[lora, 4, 1] - each[lora] for lora in (False, True)}
        per_trained = {"each": each[False] / WEIGHTS, "once": once[False] / WEIGHTS}
        found[strategy] = {
            "each_trained": round(per_trained["each"], 3),
            "once_trained": round(per_trained["once"], 3),
            "each_frozen": round((each[True] - per_trained["each"] * ADAPTER) / WEIGHTS, 3),
            "once_frozen": round((once[True] - per_trained["once"] * ADAPTER) / WEIGHTS, 3),
            "calls_each_layer": round((calls[False, 4, 2] - calls[False, 4, 1]) / LAYERS, 1),
            "calls_once": round(2 * calls[False, 4, 1] - calls[False, 4, 2], 1),
            "two_ranks_differ_by": round(abs(bus[False, 2, 1] / bus[False, 4, 1] - 1), 4),
        }
    return found


# ---------------------------------------------------------------- predicted


def step_seconds(
    model: Model,
    cluster: Cluster,
    volume: dict[str, float],
    fitted: Fitted,
    *,
    gpus: int,
    tokens: float,
    micro_batches: int = 1,
    lora: bool = False,
    recompute: bool = True,
) -> float:
    """Seconds of an optimizer step in which each GPU works through `tokens` tokens, in bf16."""
    trained = model.lora if lora else model.weights
    frozen = model.weights if lora else 0.0
    arithmetic = (
        (6 * trained + 4 * frozen + 2 * recompute * model.weights) * tokens / (cluster.peak * fitted.busy_on(cluster))
    )
    if gpus == 1:
        return arithmetic
    once, each = (volume[f"{when}_trained"] * trained + volume[f"{when}_frozen"] * frozen for when in ("once", "each"))
    elements = once + micro_batches * each
    link = cluster.nvlink if gpus <= cluster.node else min(cluster.nvlink, cluster.network)
    calls = volume["calls_once"] + micro_batches * volume["calls_each_layer"] * model.layers
    seconds = 2 * elements * (gpus - 1) / gpus / (SHARE * link) + calls * LATENCY_S * math.log2(gpus)
    return arithmetic + max(0.0, seconds - fitted.hidden * arithmetic)


def memory_bytes(model: Model, strategy: str, *, gpus: int, lora: bool) -> float:
    """Of weights, gradients and optimizer on one GPU; activations come on top."""
    trained = model.lora if lora else model.weights
    weights = 2 * model.weights / (gpus if strategy == "zero3" else 1)
    gradients = 2 * trained / (gpus if strategy in ("zero2", "zero3") else 1)
    optimizer = (OPTIMIZER_BYTES - 4) * trained / (gpus if strategy != "ddp" else 1)
    return weights + gradients + optimizer


def predict(found: dict[str, dict[str, float]], fitted: Fitted, *, tokens: int = 4096) -> list[dict[str, Any]]:
    """Tokens/s and efficiency beside as many single GPUs without communication; only what fits the memory."""
    rows = []
    for cluster in (A100, H100, A100_SLOW):
        for model in MODELS:
            for strategy in STRATEGIES:
                for lora in (False, True):
                    for gpus in GPUS:
                        bytes_needed = memory_bytes(model, strategy, gpus=gpus, lora=lora)
                        if bytes_needed > 0.8 * cluster.memory:
                            continue
                        volume = found[strategy]
                        about = {"tokens": tokens, "lora": lora}
                        seconds = step_seconds(model, cluster, volume, fitted, gpus=gpus, **about)
                        alone = step_seconds(model, cluster, volume, fitted, gpus=1, **about)
                        rows.append(
                            {
                                "cluster": cluster.name,
                                "model": model.name,
                                "strategy": strategy,
                                "lora": lora,
                                "gpus": gpus,
                                "tokens_per_s": round(gpus * tokens / seconds),
                                "efficiency": round(alone / seconds, 3),
                                "state_gib": round(bytes_needed / 2**30, 1),
                            }
                        )
    return rows


# ---------------------------------------------------------------- checked

AZURE = "https://www.deepspeed.ai/2022/07/25/deepspeed-azure.html"
ZEROPP = "https://github.com/microsoft/DeepSpeed/tree/master/blogs/zeropp"
MOSAIC = "https://github.com/mosaicml/llm-foundry/tree/main/scripts/train/benchmarking"


def fit(found: dict[str, dict[str, float]]) -> Fitted:
    """The constants with which `checks` come out nearest, on a grid."""

    def misfit(fitted: Fitted) -> float:
        return sum(math.log(row["model"] / middle(row["published"])) ** 2 for row in checks(found, fitted))

    grid = itertools.product(range(40, 71, 2), range(14, 61, 2), range(0, 101, 5))
    return min((Fitted(a / 100, v / 100, hidden / 100) for a, v, hidden in grid), key=misfit)


def middle(published: float | list[float]) -> float:
    return sum(published) / 2 if isinstance(published, list) else published


def counted_check(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A published figure beside what was counted: nothing is fitted here."""
    volume = found["zero3"]
    return {
        "figure": "ZeRO-3 says three times the weights a step and micro-batch (counted: a shared embedding once more)",
        "published": 3.0,
        "model": volume["each_trained"] + volume["once_trained"],
        "source": ZEROPP,
    }


def checks(found: dict[str, dict[str, float]], fitted: Fitted) -> list[dict[str, Any]]:
    """Published figures beside the model's, each with its source."""
    zero3, rows = found["zero3"], []
    azure = (
        (175e9, 96, 16, 128, 157.0),
        (175e9, 96, 16, 1024, 157.0),
        (530e9, 105, 8, 1024, 171.4),
        (1e12, 128, 8, 1024, 165.4),
    )
    for weights, layers, sequences, gpus, published in azure:
        model, tokens = Model(f"{weights / 1e9:.0f} B", weights, layers, 0), sequences * 1024
        seconds = step_seconds(model, A100, zero3, fitted, gpus=gpus, tokens=tokens)
        rows.append(
            {
                # 8 x weights x tokens is the article's formula (96 B s l h^2) without its small terms
                "figure": f"DeepSpeed ZeRO-3, {model.name}, {gpus} A100: TFLOP/s a GPU",
                "published": published,
                "model": 8 * weights * tokens / seconds / 1e12,
                "source": AZURE,
            }
        )
    for weights, layers, sequences, gpus, published in (
        (6_658_859_008, 32, 12, 8, 3679),
        (6_658_859_008, 32, 18, 32, 3725),
        (6_658_859_008, 32, 18, 128, 3623),
        (12_853_954_560, 40, 10, 16, 1993),
        (12_853_954_560, 40, 16, 128, 1972),
        (29_975_214_080, 48, 6, 128, 865),
        (64_862_437_376, 64, 4, 128, 376),
        (64_862_437_376, 64, 2, 64, 276),
    ):
        model, tokens = Model(f"{weights / 1e9:.1f} B", weights, layers, 0), sequences * 2048
        seconds = step_seconds(model, A100, zero3, fitted, gpus=gpus, tokens=tokens)
        rows.append(
            {
                "figure": f"FSDP full shard (the volumes of ZeRO-3), {model.name}, {gpus} A100: tokens/s a GPU",
                "published": published,
                "model": tokens / seconds,
                "source": MOSAIC,
            }
        )
    quarter = {**zero3, "each_trained": zero3["each_trained"] / 4, "once_trained": zero3["once_trained"] / 4}
    for cluster, tokens, low, high in (
        (V100_400, 1024, 1.28, 1.36),
        (V100_400, 2048, 1.24, 1.29),
        (V100_100, 1024, 1.9, 2.2),
    ):
        model = Model("18 B", 18e9, 48, 0)
        times = [step_seconds(model, cluster, volume, fitted, gpus=384, tokens=tokens) for volume in (zero3, quarter)]
        rows.append(
            {
                "figure": f"gain of a quarter of the volume (ZeRO++), 18 B, 384 {cluster.name}, {tokens} tokens a GPU",
                "published": [low, high],
                "model": times[0] / times[1],
                "source": ZEROPP,
            }
        )
    return rows


# ---------------------------------------------------------------- told


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Efficiency over the number of GPUs: a panel for each model, full weights above, LoRA below."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise SystemExit("error: the picture needs matplotlib; pip install matplotlib") from error
    figure, panels = pyplot.subplots(2, len(MODELS), figsize=(12, 6.4), sharex=True, sharey=True)
    styles = {A100.name: "-", A100_SLOW.name: ":"}
    for line, lora in enumerate((False, True)):
        for column, model in enumerate(MODELS):
            panel = panels[line][column]
            for number, strategy in enumerate(STRATEGIES):
                for cluster, style in styles.items():
                    points = [
                        (row["gpus"], row["efficiency"])
                        for row in rows
                        if (row["cluster"], row["model"], row["strategy"], row["lora"])
                        == (cluster, model.name, strategy, lora)
                    ]
                    if points:
                        label = f"{strategy}, {cluster.partition(', ')[2]}"
                        panel.plot(*zip(*points, strict=True), style, color=f"C{number}", label=label, linewidth=1.6)
            panel.set_xscale("log", base=2)
            panel.set_ylim(0, 1.05)
            panel.set_title(f"{model.name}, {'LoRA' if lora else 'full weights'}", fontsize=10)
            panel.grid(alpha=0.3)
            if not panel.lines:
                panel.text(0.5, 0.5, "does not fit", transform=panel.transAxes, ha="center")
    for column in range(len(MODELS)):
        panels[1][column].set_xlabel("A100 GPUs, 4,096 tokens a GPU and step")
    for line in range(2):
        panels[line][0].set_ylabel("efficiency")
    handles, labels = panels[1][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Count or read the counts, predict, check, write benchmarks/results/scale.json, print the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="real weights and data")
    parser.add_argument("--counted", action="store_true", help="take the counts from the results file")
    parser.add_argument("--picture", type=Path, help="a PNG file to draw")
    arguments = parser.parse_args()
    counted = json.loads(RESULTS.read_text())["counted"] if arguments.counted else count(arguments.shared)
    found = volumes(counted)
    fitted = fit(found)
    rows, checked = predict(found, fitted), [counted_check(found), *checks(found, fitted)]
    for row in checked:
        row["off"] = round(row["model"] / middle(row["published"]) - 1, 3)
    about = {
        "command": "python benchmarks/scale_model.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU: counted on gloo, times predicted",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "accelerate")},
        "constants": {**asdict(fitted), "share": SHARE, "latency_s": LATENCY_S},
        "clusters": [asdict(cluster) for cluster in (A100, H100, A100_SLOW, V100_400, V100_100)],
        "volumes": found,
        "checks": checked,
        "predicted": rows,
        "counted": counted,
    }
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")
    for check in checked:
        print(f"{check['figure']}: published {check['published']}, model {check['model']:.4g}, {check['off']:+.0%}")
    print(fitted)
    if arguments.picture:
        picture(rows, arguments.picture)


if __name__ == "__main__":
    main()
