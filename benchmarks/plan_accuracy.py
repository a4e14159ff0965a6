"""How near `ftscale plan` comes: forecasts beside measured runs, each in fresh processes.

    python benchmarks/plan_accuracy.py [--only NAME ...] [--repeat] [--forecast-only]

Combinations of three model shapes with a small and a large vocabulary; full weights, LoRA, LoRA on nf4; AdamW, 8-bit
AdamW, SGD; with and without activation checkpointing; short and long samples; one process and two under ZeRO-1, 2, 3.
Results go into benchmarks/results/plan_accuracy.json, a combination at a time; `--forecast-only` keeps what was
measured and forecasts anew.

Memory on a CPU is the resident size of the process (kernel's VmHWM), so the allocator must give back what is freed:
MALLOC_MMAP_THRESHOLD_=65536, MALLOC_TRIM_THRESHOLD_=0 and MALLOC_ARENA_MAX=1 are set. Before the run that is measured
the same process trains a tiny model of the same kind, so that code and kernels are in memory; the resident size after
that, trimmed, is what "above the imports" starts from. The high-water mark is set back (/proc/self/clear_refs) when the
model is built and read after the last step, so that loading does not count. On a GPU it is
torch.cuda.max_memory_allocated over the same steps.

Times are medians of the steps after the first two: processor time of the process, since other programs may run beside
it, with the time on the clock kept as well. One number is calibrated, the share of the device's rate that steps reach:
for each combination it is the median over the others of the same kind of model and precision.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks/results/plan_accuracy.json"
FOLDER = Path(tempfile.gettempdir()) / "ftscale-plan-accuracy"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
VOCABULARIES = {"small": "weights/stories260K", "large": "weights/tokenizers/gpt2"}
SHAPES: dict[str, dict[str, Any]] = {
    "deep": {"kind": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "wide": {"kind": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4},
    "gpt": {"kind": "gpt2", "n_embd": 768, "n_layer": 6, "n_head": 12},
}
ADAPTER = {"method": "lora", "r": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
BOUNDS = {"memory_median": 0.05, "memory_worst": 0.10, "time_median": 0.15}


@dataclass(frozen=True)
class Case:
    """A combination of settings."""

    shape: str
    vocabulary: str
    trains: str
    """full, lora, nf4."""
    optimizer: str
    length: int
    checkpointing: bool = False
    strategy: str = "single"
    processes: int = 1
    precision: str = "bf16"
    samples: int = 4
    """Of a micro-batch."""
    micro_batches: int = 1
    steps: int = 5
    """Of the run; it is timed from the third one on."""

    @property
    def name(self) -> str:
        parts = [self.shape, self.vocabulary, self.trains, self.optimizer, str(self.length)]
        parts += ["checkpointing"] * self.checkpointing + ([self.precision] if self.precision != "bf16" else [])
        parts += [f"accumulation-{self.micro_batches}"] if self.micro_batches > 1 else []
        return "-".join([*parts, *([f"{self.strategy}-{self.processes}"] if self.strategy != "single" else [])])


CASES = (
    Case("deep", "small", "full", "adamw", 128, samples=8),
    Case("deep", "large", "full", "adamw", 512),
    Case("deep", "large", "full", "adamw", 512, strategy="zero1", processes=2),
    Case("deep", "large", "full", "adamw", 512, strategy="zero2", processes=2),
    Case("deep", "large", "full", "adamw", 512, strategy="zero3", processes=2),
    Case("deep", "large", "lora", "adamw", 512),
    Case("deep", "large", "nf4", "adamw_8bit", 512),
    Case("deep", "small", "full", "adamw", 512),
    Case("deep", "large", "full", "adamw", 128),
    Case("deep", "large", "full", "adamw", 512, checkpointing=True),
    Case("deep", "large", "lora", "adamw", 512, checkpointing=True),
    Case("deep", "large", "nf4", "adamw", 512, checkpointing=True),
    Case("wide", "small", "full", "sgd", 512),
    Case("wide", "large", "full", "adamw_8bit", 128),
    Case("wide", "large", "full", "adamw", 512),
    Case("wide", "large", "lora", "sgd", 512),
    Case("wide", "small", "nf4", "adamw", 512),
    Case("wide", "large", "full", "adamw_8bit", 512, checkpointing=True),
    Case("wide", "large", "full", "adamw", 128, strategy="zero1", processes=2),
    Case("wide", "large", "lora", "adamw", 512, strategy="zero2", processes=2),
    Case("gpt", "small", "full", "adamw", 512),
    Case("gpt", "large", "full", "adamw", 128),
    Case("gpt", "large", "full", "sgd", 512, checkpointing=True),
    Case("gpt", "large", "lora", "adamw", 512),
    Case("gpt", "large", "full", "adamw", 128, precision="fp32"),
    Case("gpt", "large", "full", "adamw_8bit", 128, strategy="zero2", processes=2),
    Case("gpt", "large", "full", "adamw", 128, checkpointing=True, strategy="zero3", processes=2),
    Case("deep", "large", "full", "adamw", 128, micro_batches=2),
    Case("deep", "large", "full", "adamw", 128, strategy="zero2"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--repeat", action="store_true", help="measure again what is in the results")
    parser.add_argument("--forecast-only", action="store_true")
    parser.add_argument("--worker", choices=("measure", "forecast"), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        case = Case(**json.loads(arguments.case))
        {"measure": measure_here, "forecast": forecast_here}[arguments.worker](case)
        return 0
    for case in CASES:
        if case.name in arguments.only:
            record = results().get("cases", {}).get(case.name, {})
            if not arguments.forecast_only and ("measured" not in record or arguments.repeat):
                record["measured"] = measure(case)
            if "measured" in record:
                record["forecast"] = forecast(case)
                write(case.name, record)
                print(case.name, *(f"{key} {value}" for key, value in comparison(record).items()), flush=True)
    return conclude()


# ---------------------------------------------------------------- inputs


def config_of(case: Case, *, tiny: bool = False) -> dict[str, Any]:
    """The run of a case; `tiny`: the one that warms the process up."""
    name = "tiny" if tiny else case.name
    samples = case.samples * case.processes * case.micro_batches
    return {
        "task": {"name": "causal_lm", "max_length": 16 if tiny else case.length},
        "run_folder": str(FOLDER / "runs" / f"{name}-{os.getppid()}"),
        "model": {
            "name": str(model_folder(case, tiny=tiny)),
            "quantization": "nf4" if case.trains == "nf4" else "none",
        },
        "adapter": ADAPTER if case.trains != "full" else {"method": "none"},
        "data": {"train": str(FOLDER / "rows.jsonl"), "cache_dir": str(FOLDER / "cache")},
        "batch": {"global_size": samples, "micro_size": case.samples},
        "optimizer": {"name": case.optimizer, "lr": 1e-4},
        "train": {
            "max_steps": 2 if tiny else case.steps,
            "precision": case.precision,
            "activation_checkpointing": case.checkpointing,
        },
        "checkpoint": {"prove": "never"},
        "distributed": {"strategy": case.strategy},
    }


def model_folder(case: Case, *, tiny: bool) -> Path:
    """A saved model of random weights, made once."""
    folder = FOLDER / "models" / f"{'tiny' if tiny else case.shape}-{SHAPES[case.shape]['kind']}-{case.vocabulary}"
    if (folder / "done").is_file():
        return folder
    import shutil

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

    tokenizer = SHARED / VOCABULARIES[case.vocabulary]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    shape = dict(SHAPES[case.shape])
    kind = shape.pop("kind")
    size = len(AutoTokenizer.from_pretrained(folder))
    if kind == "llama":
        if tiny:
            shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        config: Any = LlamaConfig(
            **shape, vocab_size=size, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True
        )
    else:
        if tiny:
            shape = {"n_embd": 64, "n_layer": 2, "n_head": 4}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(**shape, vocab_size=size, n_positions=1024, **no_dropout)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    (folder / "done").touch()
    return folder


def make_rows() -> None:
    """Real captions joined to long texts, so that every sample fills `max_length`."""
    import gzip

    path = FOLDER / "rows.jsonl"
    if path.is_file():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with gzip.open(SHARED / "data/translation/multi30k_de-en/train.en.gz", "rt", encoding="utf-8") as file:
        words = file.read().split()
    texts = [" ".join(words[start : start + 1200]) for start in range(0, 64 * 1200, 1200)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


# ---------------------------------------------------------------- in fresh processes


def measure(case: Case) -> dict[str, float]:
    make_rows()
    model_folder(case, tiny=False)
    model_folder(case, tiny=True)
    return run_worker("measure", case, processes=case.processes)


def forecast(case: Case) -> dict[str, float]:
    return run_worker("forecast", case, processes=1)


def run_worker(worker: str, case: Case, *, processes: int) -> dict[str, float]:
    out = FOLDER / f"{worker}.json"
    out.unlink(missing_ok=True)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    environment |= {"DS_ACCELERATOR": "cpu"} if not gpu() else {}
    command = [*launcher, __file__, "--worker", worker, "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case.name}: {worker} failed\n{done.stderr[-4000:]}")
    return json.loads(out.read_text())


def measure_here(case: Case) -> None:
    """Train a tiny model, then the case's, and note the most memory above where the first ended."""
    import torch

    torch.set_num_threads(1)
    from ftscale.config import parse_config
    from ftscale.distributed.runtime import Distributed
    from ftscale.run import train as run

    times: list[tuple[float, float]] = []

    class Watched(Distributed):
        def prepare(self, *args: Any, **kwargs: Any) -> None:
            super().prepare(*args, **kwargs)
            built[:] = [resident_bytes()]
            reset_peak()
            times[:] = [(time.perf_counter(), time.process_time())]

        def step(self, **kwargs: Any) -> float:
            norm = super().step(**kwargs)
            times.append((time.perf_counter(), time.process_time()))
            watched.append(peak_bytes())
            return norm

    watched: list[int] = []
    built: list[int] = []
    run.Distributed = Watched  # type: ignore[misc]
    run.train(parse_config(config_of(case, tiny=True), source="tiny"), overwrite=True)
    before = resident_bytes()
    run.train(parse_config(config_of(case), source=case.name), overwrite=True)
    steps = list(zip(times[2:], times[3:], strict=False))
    figures = {
        "peak_bytes": watched[-1] - before,
        "imports_bytes": before,
        "built_bytes": built[0] - before,
    }
    if steps:
        figures["step_s"] = median(later[0] - earlier[0] for earlier, later in steps)
        figures["step_cpu_s"] = median(later[1] - earlier[1] for earlier, later in steps)
    if int(os.environ.get("RANK", "0")) == 0:
        (FOLDER / "measure.json").write_text(json.dumps(figures))


def forecast_here(case: Case) -> None:
    """What `ftscale plan` says of the case on this machine."""
    import torch

    torch.set_num_threads(1)
    from ftscale.config import parse_config
    from ftscale.plan import plan_run

    config = parse_config(config_of(case), source=case.name)
    plan = plan_run(config, gpu=None, nodes=1, gpus_per_node=case.processes, compare=False)
    figures = {
        "kinds": plan.memory.kinds,
        "peak_bytes": plan.memory.total,
        "step_flops": plan.step.flops * case.micro_batches,
        "update_s": plan.time.update_s,
    }
    (FOLDER / "forecast.json").write_text(json.dumps(figures))


def gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def resident_bytes() -> int:
    """Of this process, when what was freed has been given back; on a GPU, what is allocated."""
    import ctypes
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return kernel_kib("VmRSS") * 1024


def reset_peak() -> None:
    import torch

    resident_bytes()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else kernel_kib("VmHWM") * 1024


def kernel_kib(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


# ---------------------------------------------------------------- results


def results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def write(name: str, record: dict[str, Any]) -> None:
    from importlib.metadata import version

    found = results()
    packages = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes")
    found["command"] = "python benchmarks/plan_accuracy.py"
    found["hardware"] = f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread a process"
    found["versions"] = {"python": platform.python_version(), **{package: version(package) for package in packages}}
    found.setdefault("cases", {})[name] = record
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


def comparison(record: dict[str, Any]) -> dict[str, float]:
    """How far the forecast is off, as a share of what was measured."""
    measured, forecast = record["measured"], record["forecast"]
    return {
        "measured_mb": round(measured["peak_bytes"] / 1e6),
        "forecast_mb": round(forecast["peak_bytes"] / 1e6),
        "memory_error": round(forecast["peak_bytes"] / measured["peak_bytes"] - 1, 4),
    }


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """Medians and the worst over all combinations, and whether they are within BOUNDS."""
    records = {name: record for name, record in found["cases"].items() if "forecast" in record}
    memory = [abs(comparison(record)["memory_error"]) for record in records.values()]
    times = [abs(error) for error in time_errors(records).values()]
    figures: dict[str, Any] = {
        "combinations": len(records),
        "memory_median": round(median(memory), 4),
        "memory_worst": round(max(memory), 4),
        "time_median": round(median(times), 4) if times else None,
    }
    within = all(figures[name] is not None and figures[name] <= bound for name, bound in BOUNDS.items())
    return {**figures, "within_bounds": within}


def time_errors(records: dict[str, Any]) -> dict[str, float]:
    """Of each combination's step, with the rate that the others reach."""
    rates = {
        name: record["forecast"]["step_flops"] / (record["measured"]["step_cpu_s"] - record["forecast"]["update_s"])
        for name, record in records.items()
        if "step_cpu_s" in record["measured"]
    }
    errors = {}
    for name in rates:
        others = [other for key, other in rates.items() if key != name and _kind(key) == _kind(name)]
        if others:
            forecast = records[name]["forecast"]
            seconds = forecast["step_flops"] / median(others) + forecast["update_s"]
            errors[name] = seconds / records[name]["measured"]["step_cpu_s"] - 1
    return errors


def _kind(name: str) -> tuple[str, bool]:
    return name.split("-")[0], "fp32" in name


def conclude() -> int:
    found = results()
    found["verdict"] = verdict(found)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found["verdict"]))
    return 0 if found["verdict"]["within_bounds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
