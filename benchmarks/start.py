"""What a start over prepared rows costs, by their number: seconds and memory from the call to the first batch.

    python benchmarks/start.py [--rows 1000 1000000] [--repeats 3]

Rows are made up: 25 words, two classes, one row in a hundred held out. They are prepared once, which is timed too. Then
fresh processes start over them as `ftscale train` does, each from the check of the configuration to the batch of the
first step, after a start over a hundred rows that imports everything. `anonymous_bytes` is what RssAnon grew by: memory
of the process itself, without mapped files. Medians. Results go into benchmarks/results/start.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs/start"
RESULTS = ROOT / "benchmarks/results/start.json"

WORDS = [f"word{number}" for number in range(1000)]
LENGTH = 25  # words of a row, each a token
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        start(WORK / "warm")
        print(json.dumps(start(Path(arguments.worker))))
        return
    shutil.rmtree(WORK, ignore_errors=True)
    write(WORK / "warm", 100)
    found = [figures(rows, arguments.repeats) for rows in arguments.rows]
    from ftscale.run.folder import versions

    record = {
        "command": f"python benchmarks/start.py --rows {' '.join(map(str, arguments.rows))} "
        f"--repeats {arguments.repeats}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, CPU",
        "versions": {"python": platform.python_version(), **versions()},
        "starts": found,
        "more_than_the_first": [beside(one, found[0]) for one in found[1:]],
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(WORK)


def figures(rows: int, repeats: int) -> dict[str, Any]:
    """A preparation, and starts over what it prepared."""
    folder = WORK / str(rows)
    write(folder, rows)
    first = in_a_process(folder)
    starts = [in_a_process(folder) for _ in range(repeats)]
    usual = median(one["processor_seconds"] for one in starts)
    found = {
        "rows": rows,
        "prepared_rows_per_processor_s": round(rows / max(first["processor_seconds"] - usual, 1e-3)),
        **{name: median(one[name] for one in starts) for name in starts[0]},
        "of_each": starts,
    }
    print({name: value for name, value in found.items() if name != "of_each"}, flush=True)
    return found


def beside(one: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """What the rows that one start has more than the first cost."""
    rows, grown = one["rows"] - first["rows"], one["anonymous_bytes"] - first["anonymous_bytes"]
    return {"rows": one["rows"], "seconds": round(one["seconds"] - first["seconds"], 3), "bytes_a_row": grown / rows}


def in_a_process(folder: Path) -> dict[str, float]:
    """A start in a process of its own."""
    command = [sys.executable, __file__, "--worker", str(folder)]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, text=True)
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def start(folder: Path) -> dict[str, float]:
    """Seconds to the first batch, of the clock and of the processor, and memory."""
    from functools import partial

    from ftscale.config import parse_config
    from ftscale.data.batching import Division, Ranks
    from ftscale.data.loader import TrainingSteps
    from ftscale.run import prepared_data
    from ftscale.run.agreement import derived
    from ftscale.tasks.base import collate_samples

    before, began, worked = anonymous_bytes(), time.perf_counter(), time.process_time()
    inputs = prepared_data.prepare_inputs(parse_config(settings(folder), source="benchmarks/start.py"))
    prepared = time.perf_counter()
    derived(inputs)
    num_steps = prepared_data.num_steps_of(inputs)
    assert inputs.train is not None
    assert inputs.order is not None
    steps = TrainingSteps(
        inputs.train,
        inputs.order,
        partial(collate_samples, inputs.task, layout="padded", train=True),
        division=Division(inputs.config.batch, flat=False),
        ranks=Ranks(0, 1),
        seed=SEED,
        num_steps=num_steps,
        num_workers=0,
    )
    next(steps.after(0))
    return {
        "seconds": round(time.perf_counter() - began, 3),
        "processor_seconds": round(time.process_time() - worked, 3),
        "seconds_before_the_processes": round(prepared - began, 3),
        "anonymous_bytes": anonymous_bytes() - before,
    }


def settings(folder: Path) -> dict[str, Any]:
    return {
        "task": {"name": "text_classification", "max_length": 64},
        "model": {"name": str(folder / "model"), "init": "random"},
        "run_folder": str(folder / "run"),
        "data": {"train": str(folder / "rows.csv"), "eval_ratio": 0.01, "cache_dir": str(folder / "cache")},
        "batch": {"global_size": 32},
        "train": {"epochs": 3},
    }


def write(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    write_rows(folder / "rows.csv", rows)
    write_model(folder / "model")


def write_rows(path: Path, number: int) -> None:
    """Rows of words drawn with a seed, and a class that is one of two."""
    generator = np.random.default_rng(SEED)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for first in range(0, number, 100_000):
            drawn = generator.integers(0, len(WORDS), (min(100_000, number - first), LENGTH))
            writer.writerows([" ".join(WORDS[word] for word in row), row[0] % 2] for row in drawn.tolist())


def write_model(folder: Path) -> None:
    """The config of a tiny model, and a tokenizer that knows the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertConfig(vocab_size=len(vocabulary), **sizes).save_pretrained(folder)


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


if __name__ == "__main__":
    main()
