"""Whether two commits train alike, to the last digit: what proves a refactoring.

    python tests/same_losses.py COMMIT_A [COMMIT_B]      # without the second: the files as they are

Each task, laid flat and padded, prepared and streamed, alone and on two ranks under DDP, ZeRO-2 and ZeRO-3, whole and
resumed from its middle, all weights and LoRA: ten steps of a small real model each. Compared by ==: loss, gradient
norm, learning rate, rows and counts of each step, each evaluation, and the bytes of the saved weights. Results go into
benchmarks/results/same_losses.json; exit 1 where one differs. Needs ../shared.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks/results/same_losses.json"
STEPS, HALF = 10, 5
STRATEGIES = (("single", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2))
MEASURED = {"time_s", "tokens_per_s", "memory_bytes", "step_s", "hash"}
"""Figures that differ between two runs of one commit."""

Config = dict[str, Any]
Figures = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--only", default="", help="runs whose names hold this")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work_off(Path(arguments.commits[0]))
        return 0
    names = [*arguments.commits, "the files as they are"][:2]
    found = []
    for name in names:
        with checkout(name) as (root, commit), tempfile.TemporaryDirectory(prefix="same-losses-") as work:
            found.append((commit, figures_of(root, Path(work), only=arguments.only)))
    return compare(dict(zip("ab", found, strict=True)), only=arguments.only)


def compare(found: dict[str, tuple[str, dict[str, Figures]]], *, only: str) -> int:
    """Print and store what differs; 1 where something does."""
    (_, one), (_, other) = found.values()
    differing = {name: difference(one[name], other[name]) for name in one if one[name] != other[name]}
    for name, what in differing.items():
        print(f"{name}: {what}")
    lines = sum(len(figures["lines"]) for figures in one.values())
    print(f"{len(one)} runs, {lines} lines of metrics and {len(one)} models compared, {len(differing)} runs differ")
    record = {
        "command": f"python tests/same_losses.py {' '.join(commit for commit, _ in found.values())}",
        "commits": {name: commit for name, (commit, _) in found.items()},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, CPU",
        "runs": len(one),
        "lines": lines,
        "differing": differing,
        "names": sorted(one),
    }
    if not only:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(differing) or not one)


def difference(one: Figures, other: Figures) -> str:
    """The first place where two runs differ."""
    for ours, theirs in zip(one["lines"], other["lines"], strict=False):
        for name in ours.keys() | theirs.keys():
            if ours.get(name) != theirs.get(name):
                return f"{ours['kind']} at step {ours['step']}: {name} {ours.get(name)} and {theirs.get(name)}"
    return f"{len(one['lines'])} and {len(other['lines'])} lines, weights {one['weights']} and {other['weights']}"


# ---------------------------------------------------------------- runs


@contextmanager
def checkout(name: str) -> Iterator[tuple[Path, str]]:
    """A folder with the commit's files, and the commit's full name."""
    git = ["git", "-C", str(ROOT)]
    if name == "the files as they are":
        yield (
            ROOT,
            subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip(),
        )
        return
    commit = subprocess.run([*git, "rev-parse", name], capture_output=True, text=True, check=True).stdout.strip()
    folder = Path(tempfile.mkdtemp(prefix="ftscale-"))
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(folder / "it"), commit], check=True)
    try:
        yield folder / "it", commit
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder / "it")], check=True)
        shutil.rmtree(folder)


def figures_of(root: Path, work: Path, *, only: str) -> dict[str, Figures]:
    """Train every run with the package in `root`: one launch for each number of processes."""
    listed: dict[int, list[dict[str, Any]]] = {}
    for name, processes, config in runs(work):
        if only in name:
            listed.setdefault(processes, []).append({"config": config, "folder": str(work / name)})
    found: dict[str, Figures] = {}
    for processes, jobs in listed.items():
        file = work / f"jobs-{processes}.json"
        file.write_text(json.dumps(jobs))
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(TESTS)]),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "HF_HUB_OFFLINE": "1",
        }
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        subprocess.run(
            [sys.executable, *launcher, str(Path(__file__)), "--worker", str(file)], env=variables, cwd=root, check=True
        )
        for job in jobs:
            for folder in (Path(job["folder"]), Path(job["folder"] + "-resumed")):
                found[folder.name] = figures(folder)
    return found


def figures(folder: Path) -> Figures:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {name: value for name, value in line.items() if name not in MEASURED}
        for line in lines
        if line["kind"] in ("train", "eval")
    ]
    weights = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "model").glob("*.safetensors"))
    }
    assert weights, folder
    assert sum(line["kind"] == "train" for line in kept) == STEPS, folder
    return {"lines": kept, "weights": weights}


def work_off(file: Path) -> None:
    """One rank: each run, and once more from its middle."""
    import torch
    from launching import forget_after

    import ftscale

    torch.set_num_threads(1)
    for job in json.loads(file.read_text()):
        whole = Path(job["folder"])
        half = whole.with_name(whole.name + "-resumed")
        ftscale.train(config_of(job["config"], whole))
        if os.environ["RANK"] == "0":
            forget_after(whole, half, step=HALF)
        ftscale.train(config_of(job["config"], half), resume=True)


def config_of(config: Config, folder: Path) -> Any:
    from ftscale.config import parse_config

    return parse_config({**config, "run_folder": str(folder)}, source="same_losses")


def runs(work: Path) -> Iterator[tuple[str, int, Config]]:
    """Name, number of processes and settings of each."""
    for task, (config, layouts, streams) in tasks(work).items():
        for layout, read, (strategy, processes) in itertools.product(
            layouts, ("prepared", *["stream"] * streams), STRATEGIES
        ):
            made = {**config, "distributed": {"strategy": strategy}}
            made["batch"] = {**config["batch"], "layout": layout}
            made["data"] = {**config["data"], "streaming": read == "stream"}
            yield f"{task}-{layout}-{read}-{strategy}", processes, made
            adapts = task != "image_classification"  # this small one has convolutions alone
            if adapts and read == "prepared" and strategy in ("single", "zero2") and layout == layouts[0]:
                adapter = {"method": "lora", "r": 4, "lora_dropout": 0.1}
                yield f"{task}-lora-{strategy}", processes, {**made, "adapter": adapter}


def tasks(work: Path) -> dict[str, tuple[Config, tuple[str, ...], bool]]:
    """Settings, layouts, and whether rows can be streamed, of a small run of each task."""
    from strategies import jobs

    common = {
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"max_steps": STEPS},
        "evaluation": {"every": HALF},
        "checkpoint": {"every": HALF, "keep": 9, "prove": "never"},
        "batch": {"global_size": 8, "micro_size": 2},
    }
    bert, both = str(jobs.tiny_bert(SHARED, work)), ("padded", "flat")
    tags = SHARED / "data/ner/ncbi_disease"
    parallel = SHARED / "data/translation/multi30k_de-en"
    return {
        "causal_lm": (jobs.captions(SHARED, work, **common), both, True),
        "text_classification": (jobs.reviews(SHARED, work, **common), both, True),
        "token_classification": (
            {
                "task": {"name": "token_classification", "max_length": 64},
                "model": {"name": bert, "init": "random"},
                "data": _data(work, tags / "train.tsv", tags / "devel.tsv", format="conll"),
                **common,
            },
            both,
            True,
        ),
        "seq2seq": (
            {
                "task": {"name": "seq2seq", "max_length": 64},
                "model": {"name": str(tiny_t5(work)), "init": "random"},
                "data": _data(work, parallel / "train.{de,en}.gz", parallel / "val.{de,en}.gz", format="parallel"),
                **common,
            },
            ("padded",),
            True,
        ),
        "image_classification": (jobs.digits(SHARED, work, **common), ("padded",), False),
    }


def _data(work: Path, train: Path, held_out: Path, **about: Any) -> dict[str, Any]:
    return {
        "cache_dir": str(work / "cache"),
        "train": {"path": str(train), "limit": 60, **about},
        "eval": {"path": str(held_out), "limit": 12, **about},
    }


def tiny_t5(work: Path) -> Path:
    """A T5's configuration with a real tokenizer beside it."""
    from transformers import T5Config

    folder = work / "tiny-t5"
    if not folder.exists():
        shutil.copytree(SHARED / "weights/tokenizers/t5", folder)
        T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0).save_pretrained(
            folder
        )
    return folder


if __name__ == "__main__":
    sys.exit(main())
