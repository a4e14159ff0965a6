"""Speed and memory beside other trainers at their best settings: the same rows, model and optimizer steps, in turn.

    python benchmarks/speed.py [--only NAME ...] [--peers NAME ...] [--repeats 5] [--threads 2]

HF Trainer and sentence-transformers are there anyway. TRL and LLaMA-Factory ask for other versions and run in
environments of their own:

    python -m venv runs/peers/trl && runs/peers/trl/bin/pip install -r benchmarks/requirements-peers-trl.txt

Of each program, ftscale too, settings are tried first (speed_peers.py). Those of the most tokens/s and of the least
memory are its best, which are then run in turn: the fastest is compared with the fastest, the smallest with the
smallest. Each run is a fresh process. Results go into benchmarks/results/speed.json, a work at a time, with all
that was tried, medians and spread (least and greatest):

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
from speed_peers import FTSCALE, HERE, PEERS, Peer, Setting, best_settings, environment_of, python_of
from speed_works import FOLDER, ROOT, Work, make_inputs, prepare, works

RESULTS = ROOT / "benchmarks/results/speed.json"
FIGURES = ("tokens_per_s", "peak_mib", "first_step_s", "held_out_loss")
BEST_FOR = ("time", "memory")
OURS = "ftscale"


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

    def run_side(program: str, setting: Setting) -> dict[str, float]:
        run = run_ftscale if program == OURS else partial(run_peer, program)
        return run(folder, setting, steps=work.steps)

    best: dict[str, dict[str, Setting]] = {}
    grids = {}
    for name_of, program in {OURS: FTSCALE, **peers}.items():

        def tried(setting: Setting, name_of: str = name_of) -> dict[str, float] | None:
            try:
                return measured(f"{name_of} {setting}", partial(run_side, name_of, setting))
            except RuntimeError as error:
                print(name, name_of, setting, error, flush=True)
                return None

        *settings, grids[name_of] = best_settings(program.grid(work.run), tried)
        best[name_of] = dict(zip(BEST_FOR, settings, strict=True))

    sides = {(name_of, what): setting for name_of, of in best.items() for what, setting in of.items()}
    # one that is the best for both is run once
    distinct = {(name_of, json.dumps(setting)): (name_of, setting) for (name_of, _), setting in sides.items()}
    runs: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in distinct}
    for _ in range(repeats):
        for key, (name_of, setting) in distinct.items():
            runs[key].append(measured(name_of, partial(run_side, name_of, setting)))
    figures = {
        f"{name_of}, best for {what}": runs[name_of, json.dumps(setting)] for (name_of, what), setting in sides.items()
    }
    medians = {side: {key: median(run[key] for run in done) for key in FIGURES} for side, done in figures.items()}
    ratios = {}
    for peer in peers:
        for what in BEST_FOR:
            ours, theirs = medians[f"{OURS}, best for {what}"], medians[f"{peer}, best for {what}"]
            ratios[f"{peer}, best for {what}"] = rounded({key: ours[key] / theirs[key] for key in FIGURES})
    speed = min(ratios[f"{peer}, best for time"]["tokens_per_s"] for peer in peers)
    memory = max(ratios[f"{peer}, best for memory"]["peak_mib"] for peer in peers)
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
            for side, done in figures.items()
        },
        "runs": figures,
        "grid": grids,
        "work": described(work, tokens),
        "command": f"python benchmarks/speed.py --only {name} --peers {' '.join(peers)} --repeats {repeats} "
        f"--threads {os.environ['OMP_NUM_THREADS']}",
        "hardware": hardware(),
        "versions": versions(),
    }


def run_ftscale(folder: Path, setting: Setting | None = None, *, steps: int) -> dict[str, float]:
    """`ftscale train`; its figures are those that it writes itself. Without a setting as run.yaml says."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    command = ["-m", "ftscale", "train", str(folder / "run.yaml")]
    if setting is not None:
        size = yaml.safe_load((folder / "run.yaml").read_text())["batch"]["global_size"]
        command.append(f"batch.micro_size={-(-size // setting['micro_batches'])}")
    environment = environment_of(setting or {})
    sign, log = folder / "run/metrics.jsonl", folder / "ftscale.log"
    first_step_s = timed(command, sign=sign, log=log, environment=environment)
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
            own = f"{OURS}, {side.partition(', ')[2]}"
            ours, theirs = record["medians"][own], record["medians"][side]
            cells = [f"{key} {ratios[key]:.2f} ({ours[key]:.4g} : {theirs[key]:.4g})" for key in FIGURES]
            print(f"  {side}: " + ", ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
