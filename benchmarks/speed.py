"""Speed and memory beside HF Trainer at its best setting: the same rows, model and optimizer steps, run in turn.

    python benchmarks/speed.py [--only NAME ...] [--repeats 3] [--threads 2]

Each run is a fresh process. Results go into benchmarks/results/speed.json, a work at a time:

- `tokens_per_s`: real tokens (images) over the time of the training steps, with the making of batches;
- `peak_mib`: ru_maxrss of the process at the end of the last step, libraries included;
- `first_step_s`: from the start of the process to the end of the first step, with prepared rows on disk already;
- `held_out_loss`: after the last step, mean over targets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from speed_works import FOLDER, ROOT, Work, make_inputs, prepare, works

RESULTS = ROOT / "benchmarks/results/speed.json"
FIGURES = ("tokens_per_s", "peak_mib", "first_step_s", "held_out_loss")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=works(), default=list(works()))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    in_a_process(make_inputs)
    records = {}
    for name in arguments.only:
        records[name] = compare(name, works()[name], repeats=arguments.repeats)
        add_result(name, records[name])
    show(records)
    return 0 if all(record["as_promised"] for record in records.values()) else 1


def compare(name: str, work: Work, *, repeats: int) -> dict[str, Any]:
    """Both programs in turn; medians, their ratios, and whether these are as promised."""
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump({**work.run, "run_folder": str(folder / "run")}))
    in_a_process(prepare, folder)
    tokens = json.loads((folder / "tokens.json").read_text())
    runs: dict[str, list[dict[str, float]]] = {"ftscale": [], "hf_trainer": []}
    for turn in range(repeats):
        for side, run_side in (("ftscale", run_ftscale), ("hf_trainer", run_hf_trainer)):
            figures = run_side(folder, steps=work.steps)
            runs[side].append({"tokens_per_s": tokens / figures.pop("train_s"), **figures})
            print(name, turn, side, {key: round(value, 4) for key, value in runs[side][-1].items()}, flush=True)
    medians = {side: {key: median(run[key] for run in done) for key in FIGURES} for side, done in runs.items()}
    ratios = {key: medians["ftscale"][key] / medians["hf_trainer"][key] for key in FIGURES}
    promised = {"tokens_per_s": work.tokens_per_s_at_least, "peak_mib": work.memory_at_most}
    kept = ratios["tokens_per_s"] >= work.tokens_per_s_at_least and (
        work.memory_at_most is None or ratios["peak_mib"] <= work.memory_at_most
    )
    return {
        "ratios": rounded(ratios),
        "promised": {key: value for key, value in promised.items() if value is not None},
        "as_promised": kept,
        "medians": {side: rounded(figures) for side, figures in medians.items()},
        "runs": {side: [rounded(run) for run in done] for side, done in runs.items()},
        "work": described(work, tokens),
        "command": f"python benchmarks/speed.py --only {name} --repeats {repeats} "
        f"--threads {os.environ['OMP_NUM_THREADS']}",
        "hardware": hardware(),
        "versions": versions(),
    }


def run_ftscale(folder: Path, *, steps: int) -> dict[str, float]:
    """`ftscale train`; its figures are those that it writes itself."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = ["-m", "ftscale", "train", str(folder / "run.yaml")]
    first_step_s = timed(command, sign=folder / "run/metrics.jsonl", log=folder / "ftscale.log")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "train"]
    assert len(training) == steps, f"{len(training)} optimizer steps, not {steps}"
    result = json.loads((folder / "run/result.json").read_text())
    return {
        "train_s": result["duration_s"],
        "peak_mib": training[-1]["memory_bytes"] / 2**20,
        "first_step_s": first_step_s,
        "held_out_loss": result["metrics"]["loss"],
    }


def run_hf_trainer(folder: Path, *, steps: int) -> dict[str, float]:
    """benchmarks/speed_hf_trainer.py."""
    (folder / "first_step").unlink(missing_ok=True)
    command = [str(Path(__file__).with_name("speed_hf_trainer.py")), str(folder / "run.yaml"), str(folder)]
    first_step_s = timed(command, sign=folder / "first_step", log=folder / "hf_trainer.log")
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == steps, f"{result['steps']} optimizer steps, not {steps}"
    return {
        "train_s": result["train_s"],
        "peak_mib": result["peak_bytes"] / 2**20,
        "first_step_s": first_step_s,
        "held_out_loss": result["held_out_loss"],
    }


def timed(command: list[str], *, sign: Path, log: Path) -> float:
    """Run Python with these arguments; the seconds until the file `sign` had content (or was there, if empty)."""
    start = time.perf_counter()
    first_step_s = None
    with log.open("w") as output, subprocess.Popen([sys.executable, *command], stdout=output, stderr=output) as process:
        while process.poll() is None:
            if first_step_s is None and sign.exists() and sign.stat().st_size:
                first_step_s = time.perf_counter() - start
            time.sleep(0.02)
    if process.returncode or first_step_s is None:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return first_step_s


def in_a_process(function: Any, *arguments: Any) -> None:
    """In a process of its own: what this one holds would count into the peak of the processes that it starts."""
    process = get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} failed")


def described(work: Work, tokens: int) -> dict[str, Any]:
    """The configuration that both sides did, paths as seen from the checkout."""
    text = json.dumps({"steps": work.steps, "tokens": tokens, "run": work.run})
    site = str(Path(yaml.__file__).parents[1])
    for path, name in (
        (str(FOLDER), "runs/speed"),
        (str(ROOT.parent / "shared"), "../shared"),
        (site, "SITE_PACKAGES"),
    ):
        text = text.replace(path, name)
    return json.loads(text)


def hardware() -> str:
    """The CPU by name, and its cores."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, no GPU"


def versions() -> dict[str, str]:
    from ftscale.run.folder import versions

    return versions()


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in figures.items()}


def add_result(name: str, record: dict[str, Any]) -> None:
    """Put a work into the results file, whatever else stands in it."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = record
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def show(records: dict[str, dict[str, Any]]) -> None:
    """ftscale to HF Trainer, figure by figure."""
    print(f"\n{'ftscale : HF Trainer':26}{'tokens/s':>20}{'peak MiB':>20}{'first step s':>20}{'held-out loss':>22}")
    for name, record in records.items():
        ours, theirs = record["medians"]["ftscale"], record["medians"]["hf_trainer"]
        cells = []
        for key in FIGURES[:3]:
            cells.append(f"{record['ratios'][key]:.2f} ({ours[key]:.0f}:{theirs[key]:.0f})")
        cells.append(f"{ours['held_out_loss']:.3f} : {theirs['held_out_loss']:.3f}")
        kept = "" if record["as_promised"] else "  NOT AS PROMISED"
        print(f"{name:26}" + "".join(f"{cell:>20}" for cell in cells) + kept)


if __name__ == "__main__":
    sys.exit(main())
