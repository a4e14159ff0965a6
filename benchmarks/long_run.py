"""100,000 steps of a tiny model: whether memory, open files, threads, writing or the time of a step grow.

    python benchmarks/long_run.py [--steps 100000] [--only prepared stream]

A Llama of one layer learns film reviews, over prepared and over streamed rows, with a checkpoint each hundredth of the
steps, two of them kept, and an evaluation each fiftieth. From outside, the process is looked at about 250 times:

- `resident_mb`, `open_files`, `threads`: as the kernel counts them; of memory what is the process's own (RssAnon), for
  pages of libraries come and go with the machine's other work;
- `written_bytes_per_step`: what all its writes came to since the look before, checkpoints included;
- `checkpoint_bytes`: of every checkpoint that was seen;
- `step_ms`: processor time since the look before, by the steps done meanwhile (wall time tells of the neighbours too).

The first fifth is left out, where allocators and caches fill. A line is fitted through the rest: `growth` is its rise
over those steps as a share of the median, `noise` three standard errors of it, from the medians of 32 equal parts.
A figure grows where `growth` is beyond its noise and beyond 1 %. The watchdog of Slurm jobs looks on and must not fire
though it is given a minute instead of half an hour. Results go into benchmarks/results/long_run.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftscale.cluster.records import Records
from ftscale.cluster.watchdog import Watchdog

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
WORK = ROOT / "runs/long_run"
RESULTS = ROOT / "benchmarks/results/long_run.json"

LOOKS = 250
WARM = 0.2  # of the steps, left out
PARTS = 32
SILENCE_S = 60.0
LEAST_GROWTH = 0.01
FIGURES = ("resident_mb", "open_files", "threads", "written_bytes_per_step", "checkpoint_bytes", "step_ms")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=("prepared", "stream"), default=("prepared", "stream"))
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    runs: dict[str, Any] = {}
    for name in arguments.only:
        runs[name] = long_run(name, WORK / name, steps=arguments.steps)
        print(name, json.dumps(runs[name], indent=1), flush=True)
        write_results(runs, arguments.steps)
        shutil.rmtree(WORK / name)
    return 0 if all(run["holds"] for run in runs.values()) else 1


@dataclass
class Looks:
    """What was seen of a process, look by look."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of processor time, its threads and workers together."""
    resident_mb: list[float] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    written_bytes: list[int] = field(default_factory=list)
    checkpoints: dict[int, int] = field(default_factory=dict)
    """Bytes, by step."""

    def take(self, process: subprocess.Popen, folder: Path, step: int) -> None:
        """Add a look; raises OSError where the process is gone."""
        status = Path(f"/proc/{process.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        files = len(os.listdir(f"/proc/{process.pid}/fd"))
        counters = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
        times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        self.steps.append(step)
        self.seconds.append(sum(map(int, times)) / os.sysconf("SC_CLK_TCK"))
        self.resident_mb.append(int(values["RssAnon"].split()[0]) / 1024)
        self.threads.append(int(values["Threads"]))
        self.open_files.append(files)
        self.written_bytes.append(int(counters["wchar"]))
        for path in (folder / "checkpoints").glob("step-*"):
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            self.checkpoints[int(path.name.removeprefix("step-"))] = size

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A figure as (looks,) steps and (looks,) values."""
        steps = np.array(self.steps, dtype=float)
        if name == "checkpoint_bytes":
            return np.array(sorted(self.checkpoints), dtype=float), np.array(
                [self.checkpoints[step] for step in sorted(self.checkpoints)], dtype=float
            )
        if name == "step_ms":
            return steps[1:], np.diff(self.seconds) * 1000 / np.diff(steps)
        if name == "written_bytes_per_step":
            return steps[1:], np.diff(self.written_bytes) / np.diff(steps)
        return steps, np.array(getattr(self, name), dtype=float)


class Followed:
    """The training process as the watchdog's step, on this machine."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()


def long_run(name: str, work: Path, *, steps: int) -> dict[str, Any]:
    """Train so many steps, look on, and judge each figure."""
    work.mkdir(parents=True)
    folder, log = work / "run", work / "run.log"
    (work / "run.json").write_text(json.dumps(settings(name, work, steps=steps)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftscale", "train", str(work / "run.json")],
            stdout=output,
            stderr=output,
            env=environment,
        )
    said: list[str] = []
    watchdog = Watchdog(Followed(process), None, Records(folder), SILENCE_S, said.append)  # type: ignore[arg-type]
    watching = threading.Thread(target=watchdog.wait, kwargs={"leaves": lambda: False})
    watching.start()
    looks = look_on(process, folder, every=max(steps // LOOKS, 1))
    code = process.wait()
    watching.join()
    assert code == 0 or said, f"the run failed; see {log}"
    judged = {figure: judge(*looks.series(figure), first=steps * WARM) for figure in FIGURES}
    return {
        "steps": looks.steps[-1],
        "looks": len(looks.steps),
        "watchdog_fired": said,
        "figures": judged,
        "holds": code == 0 and not said and not any(figure["grows"] for figure in judged.values()),
    }


def look_on(process: subprocess.Popen, folder: Path, *, every: int) -> Looks:
    """A look each time that many steps are done, until the process has ended."""
    looks, lines = Looks(), None
    step, due = 0, every
    while process.poll() is None:
        time.sleep(0.05)
        if lines is None and (folder / "metrics.jsonl").exists():
            lines = (folder / "metrics.jsonl").open()
        for line in lines or ():
            if line.endswith("\n") and '"train"' in line:
                step = json.loads(line)["step"]
        if step >= due:
            due = step + every
            try:
                looks.take(process, folder, step)
            except (OSError, KeyError):  # it has just ended, or rotated a checkpoint away
                continue
    return looks


def judge(steps: np.ndarray, values: np.ndarray, *, first: float) -> dict[str, Any]:
    """Whether (looks,) values rise with their steps, from the step `first` on."""
    steps, values = steps[steps >= first], values[steps >= first]
    parts = [part for part in np.array_split(np.arange(len(steps)), PARTS) if len(part)]
    x = np.array([np.median(steps[part]) for part in parts])
    y = np.array([np.median(values[part]) for part in parts])
    span, middle = float(x[-1] - x[0]), float(np.median(y))
    slope, start = np.polyfit(x, y, 1)
    residual = y - (slope * x + start)
    error = np.sqrt((residual**2).sum() / max(len(x) - 2, 1) / ((x - x.mean()) ** 2).sum())
    growth, noise = slope * span / middle, 3 * error * span / middle
    return {
        "median": round(middle, 3),
        "first": round(float(y[0]), 3),
        "last": round(float(y[-1]), 3),
        "growth": round(float(growth), 5),
        "noise": round(float(noise), 5),
        "grows": bool(growth > noise and growth > LEAST_GROWTH),
    }


def settings(name: str, work: Path, *, steps: int) -> dict[str, Any]:
    """A Llama of one layer, 16 wide, on film reviews."""
    reviews = SHARED / "data/text_classification/sst2"
    columns = {"header": False, "columns": {"text": 0, "label": 1}}
    return {
        "task": {"name": "text_classification", "max_length": 32, "labels": ["0", "1"]},
        "run_folder": str(work / "run"),
        "model": str(tiny_model(work / "tiny")),
        "data": {
            "train": {"path": str(reviews / "train.tsv"), **columns},
            "eval": {"path": str(reviews / "dev.tsv"), "limit": 64, **columns},
            "cache_dir": str(work / "cache"),
            "streaming": name == "stream",
        },
        "batch": {"global_size": 4},
        "optimizer": {"lr": 1e-4},
        "train": {"max_steps": steps, "log_every": 100},
        "evaluation": {"every": max(steps // 50, 1)},
        "checkpoint": {"every": max(steps // 100, 1), "keep": 2, "prove": "never"},
    }


def tiny_model(folder: Path) -> Path:
    """A model with random weights and the tokenizer of the 260 K Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(SHARED / "weights/stories260K", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_results(runs: dict[str, Any], steps: int) -> None:
    from ftscale.run.folder import versions

    record = {
        "command": f"python benchmarks/long_run.py --steps {steps}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, CPU, shared with other work",
        "versions": versions(),
        "silence_s": SILENCE_S,
        "holds": all(run["holds"] for run in runs.values()),
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
