"""What embeddings take in memory: sixteen times the negatives, and a million texts.

    python benchmarks/embedding_memory.py [--texts 1000000]

- `negatives`: MiniLM on pairs of questions and paragraphs, in micro-batches of 8 pairs. A global batch of 128 has 16
  times the negatives of one of 8; beside it sentence-transformers' plain loss on batches of both sizes. MiB at the
  peak of the process.
- `texts`: `ftscale predict` of short texts into an array and into Parquet with a tiny model, of a hundredth of the
  texts and of all. MiB at the peak of the process, seconds, size of the file.

Needs ../shared. Results go into benchmarks/results/embedding_memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from copy import deepcopy
from typing import Any

import yaml
from one_number import WORK as SMALL
from one_number import write_inputs
from speed import hardware, in_a_process, rounded, run_ftscale, run_peer, versions
from speed_works import FOLDER, ROOT, make_inputs, prepare, works

RESULTS = ROOT / "benchmarks/results/embedding_memory.json"
TEXTS = ROOT / "runs/embedding_memory"
STEPS, MICRO_SIZE = 3, 8
GLOBAL_SIZES = (MICRO_SIZE, 16 * MICRO_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1_000_000)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    in_a_process(make_inputs)
    record = {
        "negatives": {f"batches of {size}": negatives(size) for size in GLOBAL_SIZES},
        "texts": texts(arguments.texts),
        "command": f"python benchmarks/embedding_memory.py --texts {arguments.texts}",
        "hardware": hardware(),
        "versions": versions(),
    }
    print(json.dumps(record, indent=1))
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def negatives(size: int) -> dict[str, float]:
    """MiB at the peak of training on batches of so many pairs."""
    folder = FOLDER / f"negatives_{size}"
    folder.mkdir(parents=True, exist_ok=True)
    run = deepcopy(works()["embedding"].run)
    run["data"]["train"]["limit"] = size * STEPS
    run["batch"] = {"global_size": size, "micro_size": MICRO_SIZE}
    (folder / "run.yaml").write_text(yaml.safe_dump({**run, "run_folder": str(folder / "run")}))
    in_a_process(prepare, folder)
    plain = {"cached": 0, "attention": "sdpa"}
    sides = {
        "ftscale": run_ftscale(folder, steps=STEPS),
        "sentence_transformers": run_peer("sentence_transformers", folder, plain, steps=STEPS),
    }
    return rounded({side: figures["peak_mib"] for side, figures in sides.items()})


def texts(number: int) -> dict[str, dict[str, float]]:
    """What `ftscale predict` takes for few texts and for many."""
    in_a_process(write_inputs)
    in_a_process(train_tiny)
    return {
        f"{count} texts, {kind}": in_another_process(count, kind)
        for count in (number // 100, number)
        for kind in (".npy", ".parquet")
    }


def train_tiny() -> None:
    """A finished run of a model of two layers, on a few pairs."""
    from ftscale import train
    from ftscale.config import parse_config

    shutil.rmtree(TEXTS, ignore_errors=True)
    TEXTS.mkdir(parents=True)
    pairs = [{"anchor": f"question {number}", "positive": f"answer {number}"} for number in range(8)]
    (TEXTS / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run: dict[str, Any] = {
        "task": {"name": "embedding", "max_length": 32},
        "model": str(SMALL / "models/bert"),
        "run_folder": str(TEXTS / "run"),
        "data": {"train": str(TEXTS / "pairs.jsonl"), "cache_dir": str(TEXTS / "cache")},
        "batch": {"global_size": 8},
        "train": {"max_steps": 1},
        "checkpoint": {"prove": "never"},
    }
    train(parse_config(run, source="benchmarks/embedding_memory.py"))


def in_another_process(count: int, kind: str) -> dict[str, float]:
    """Of its own, so that the peak of its child is that of this one child."""
    command = [sys.executable, __file__, "--one", str(count), kind]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def predict(count: int, kind: str) -> dict[str, float]:
    """Memory, time and bytes of a prediction of so many texts."""
    source, out = TEXTS / f"{count}.txt", TEXTS / f"{count}{kind}"
    with source.open("w") as file:
        file.writelines(f"a short text, number {number}\n" for number in range(count))
    command = [sys.executable, "-m", "ftscale", "predict", str(TEXTS / "run"), str(source), "--out", str(out)]
    start = time.perf_counter()
    subprocess.run([*command, "--batch-size", "256"], check=True, stdout=sys.stderr)
    figures = {
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "seconds": time.perf_counter() - start,
        "file_mib": out.stat().st_size / 2**20,
    }
    return rounded(figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(predict(int(sys.argv[2]), sys.argv[3])))
    else:
        main()
