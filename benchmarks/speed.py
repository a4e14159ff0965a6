"""Speed and memory beside other trainers at their best settings: the same rows, model and optimizer steps, in turn.

    python benchmarks/speed.py [--only NAME ...] [--peers NAME ...] [--repeats 5] [--threads 2]

HF Trainer and sentence-transformers are there anyway. TRL and LLaMA-Factory ask for other versions and run in
environments of their own:

    python -m venv runs/peers/trl && runs/peers/trl/bin/pip install -r benchmarks/requirements-peers-trl.txt

Of each, settings are tried first (speed_peers.py). Those of the most tokens/s and of the least memory are its best,
which are then run in turn with ftscale; that has one setting for both. Each run is a fresh process. Results go into
benchmarks/results/speed.json, a work at a time, with all that was tried, medians and spread (least and greatest):

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
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from speed_peers import HERE, PEERS, Peer, Setting, best_settings, environment_of, python_of
from speed_works import FOLDER, ROOT, Work, make_inputs, prepare, works

RESULTS = ROOT / "benchmarks/results/speed.json"
FIGURES = ("tokens_per_s", "peak_mib", "first_step_s", "held_out_loss")
BEST_FOR = ("time", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=works(), default=list(works()))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["hf_trainer", "sentence_transformers"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    in_a_process(make_inputs)
    records = {}
    for name in arguments.only:
        work = works()[name]
        peers = {peer: PEERS[peer] for peer in arguments.peers if PEERS[peer].does(work.run)}
        records[name] = compare(name, work, peers, repeats=arguments.repeats)
        add_result(name, records[name])
    show(records)
    return 0 if all(record["as_promised"] for record in records.values()) else 1


def compare(name: str, work: Work, peers: dict[str, Peer], *, repeats: int) -> dict[str, Any]:
    """All programs in turn, the peers at their best; medians, their ratios, and whether they are as promised."""
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump({**work.run, "run_folder": str(folder / "run")}))
    in_a_process(prepare, folder)
    tokens = json.loads((folder / "tokens.json").read_text())

    def measured(side: str, run: Callable[[], dict[str, float]]) -> dict[str, float]:
        figures = run()
        figures = {"tokens_per_s": (figures.pop("tokens", None) or tokens) / figures.pop("train_s"), **figures}
        print(name, side, {key: round(value, 4) for key, value in figures.items()}, flush=True)
        return rounded(figures)

    def run_side(peer: str, setting: Setting) -> dict[str, float]:
        return run_peer(peer, folder, setting, steps=work.steps)

    best: dict[str, dict[str, Setting]] = {}
    grids = {}
    for peer, program in peers.items():

        def tried(setting: Setting, peer: str = peer) -> dict[str, float] | None:
            try:
                return measured(f"{peer} {setting}", partial(run_side, peer, setting))
            except RuntimeError as error:
                print(name, peer, setting, error, flush=True)
                return None

        *settings, grids[peer] = best_settings(program.grid(work.run), tried)
        best[peer] = dict(zip(BEST_FOR, settings, strict=True))

    ours = partial(run_ftscale, folder, steps=work.steps)
    sides: dict[str, Callable[[], dict[str, float]]] = {"ftscale": ours}
    for peer, of in best.items():
        sides[f"{peer}, best for time"] = partial(run_side, peer, of["time"])
        if of["memory"] != of["time"]:
            sides[f"{peer}, best for memory"] = partial(run_side, peer, of["memory"])
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            runs[side].append(measured(side, run))
    medians = {side: {key: median(run[key] for run in done) for key in FIGURES} for side, done in runs.items()}
    ratios = {
        side: rounded({key: medians["ftscale"][key] / figures[key] for key in FIGURES})
        for side, figures in medians.items()
        if side != "ftscale"
    }
    speed = min(of["tokens_per_s"] for of in ratios.values())
    memory = max(of["peak_mib"] for of in ratios.values())
    return {
        "tokens_per_s": speed,
        "peak_mib": memory,
        "promised": {
            key: value
            for key, value in (("tokens_per_s", work.tokens_per_s_at_least), ("peak_mib", work.memory_at_most))
            if value is not None
        },
        "as_promised": speed >= work.tokens_per_s_at_least
        and (work.memory_at_most is None or memory <= work.memory_at_most),
        "ratios": ratios,
        "best_setting": best,
        "medians": {side: rounded(figures) for side, figures in medians.items()},
        "spread": {
            side: {key: [min(run[key] for run in done), max(run[key] for run in done)] for key in FIGURES}
            for side, done in runs.items()
        },
        "runs": runs,
        "grid": grids,
        "work": described(work, tokens),
        "command": f"python benchmarks/speed.py --only {name} --peers {' '.join(peers)} --repeats {repeats} "
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


def run_peer(peer: str, folder: Path, setting: Setting, *, steps: int) -> dict[str, float]:
    """A peer's script at a setting. Raises RuntimeError where it fails."""
    (folder / "first_step").unlink(missing_ok=True)
    command = [str(HERE / PEERS[peer].script), str(folder / "run.yaml"), str(folder), json.dumps(setting)]
    first_step_s = timed(
        command,
        sign=folder / "first_step",
        log=folder / f"{peer}.log",
        python=python_of(peer),
        environment=environment_of(setting),
    )
    result = json.loads((folder / "result.json").read_text())
    if result["steps"] != steps:
        raise RuntimeError(f"{result['steps']} optimizer steps, not {steps}")
    return {
        "train_s": result["train_s"],
        "tokens": result["tokens"],
        "peak_mib": result["peak_bytes"] / 2**20,
        "first_step_s": first_step_s,
        "held_out_loss": result["held_out_loss"],
    }


def timed(
    command: list[str],
    *,
    sign: Path,
    log: Path,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Run Python with these arguments; the seconds until the file `sign` had content (or was there, if empty)."""
    start = time.perf_counter()
    first_step_s = None
    env = {**os.environ, **(environment or {})}
    with (
        log.open("w") as output,
        subprocess.Popen([python, *command], env=env, stdout=output, stderr=output) as process,
    ):
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
    """ftscale to each peer at its best, figure by figure."""
    for name, record in records.items():
        print(
            f"\n{name}: {record['tokens_per_s']:.2f} times the tokens/s of the fastest setting, "
            f"{record['peak_mib']:.2f} times the memory of the smallest"
            + ("" if record["as_promised"] else "; NOT AS PROMISED")
        )
        for side, ratios in record["ratios"].items():
            ours, theirs = record["medians"]["ftscale"], record["medians"][side]
            cells = [f"{key} {ratios[key]:.2f} ({ours[key]:.4g} : {theirs[key]:.4g})" for key in FIGURES]
            print(f"  {side}: " + ", ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
