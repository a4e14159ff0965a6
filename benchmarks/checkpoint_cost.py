"""What safety costs: saving beside not saving, saving in the background beside waiting, and resuming a stream.

    python benchmarks/checkpoint_cost.py [--repeats 3]

- `synchronous`, `asynchronous`: full fine-tuning of MiniLM (22.7 M weights, AdamW) on AG News, one save after each 100
  steps; `wall_share` is the time that saving took of the whole, `blocked_s` what a save kept training waiting;
- `stream_recovery`: seconds from the start of the process to the first new step, of a run that goes on at row 1,000
  and at row 1,000,000 of a stream of JSON lines.

Each run is a fresh process, sides in turn; medians. Results go into benchmarks/results/checkpoint_cost.json.
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
from pathlib import Path
from statistics import median
from typing import Any

from ftscale.demo.__main__ import encoder_folder

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
WORK = ROOT / "runs/checkpoint_cost"
RESULTS = ROOT / "benchmarks/results/checkpoint_cost.json"

STEPS, EVERY = 200, 100
NEAR, FAR = 1_000, 1_000_000  # rows into the stream


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    record = {
        "saving": saving(arguments.repeats),
        "stream_recovery": stream_recovery(arguments.repeats),
        "command": f"python benchmarks/checkpoint_cost.py --repeats {arguments.repeats}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, CPU",
    }
    from ftscale.run.folder import versions

    RESULTS.write_text(json.dumps({**record, "versions": versions()}, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    shutil.rmtree(WORK)
    return 0


def saving(repeats: int) -> dict[str, Any]:
    """Seconds that a save blocks, and its share of the run, of both ways in turn."""
    found: dict[str, list[dict[str, float]]] = {"synchronous": [], "asynchronous": []}
    for turn in range(repeats):
        for name in found:
            folder = WORK / f"{name}-{turn}"
            ftscale(news(folder, in_background=name == "asynchronous"))
            lines = metrics(folder)
            blocked = [line["blocked_s"] for line in lines if line.get("event") == "saved"]
            duration = json.loads((folder / "result.json").read_text())["duration_s"]
            found[name].append({"blocked_s": median(blocked), "duration_s": duration, "saves": len(blocked)})
            print(name, turn, found[name][-1], flush=True)
            shutil.rmtree(folder)
    medians = {name: median(run["blocked_s"] for run in runs) for name, runs in found.items()}
    durations = {name: median(run["duration_s"] for run in runs) for name, runs in found.items()}
    return {
        "synchronous_wall_share": round(medians["synchronous"] * (STEPS // EVERY) / durations["synchronous"], 5),
        "asynchronous_blocks_of_synchronous": round(medians["asynchronous"] / medians["synchronous"], 4),
        "blocked_s": medians,
        "duration_s": durations,
        "runs": found,
    }


def stream_recovery(repeats: int) -> dict[str, Any]:
    """A run is stopped at either row, and its next start is timed, in turn."""
    rows = WORK / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(FAR + 50_000):
            file.write(json.dumps({"text": f"row {number} of a long stream of short rows"}) + "\n")
    folders = {}
    for name, row in (("near", NEAR), ("far", FAR)):
        folders[name] = WORK / name
        ftscale(stream(folders[name], rows))
        move_to(folders[name], rows, row)
    found: dict[str, list[float]] = {"near": [], "far": []}
    for turn in range(repeats):
        for name, folder in folders.items():
            copy = WORK / "copy"
            shutil.copytree(folder, copy)
            start = time.time()
            ftscale(stream(copy, rows), "--resume")
            first = next(line for line in metrics(copy) if line["kind"] == "train" and line["step"] == 2)
            began = time.mktime(time.strptime(run_start(copy), "%Y-%m-%dT%H:%M:%S%z"))
            found[name].append(round(max(began - start, 0.0) + first["time_s"], 3))
            print(name, turn, found[name][-1], flush=True)
            shutil.rmtree(copy)
    return {"row_1000_s": median(found["near"]), "row_1000000_s": median(found["far"]), "runs": found}


def move_to(folder: Path, rows: Path, row: int) -> None:
    """As if the run had read so many rows when it was stopped: the checkpoint's position is that of a later block."""
    from ftscale.config.schema import SourceConfig
    from ftscale.data.sources import open_stream

    source = SourceConfig(path=str(rows))
    stream = open_stream(source, roles=(("text",),), position=None)
    position = next(place for number, (_, place) in enumerate(stream, 1) if number == row)
    for step in (2, 3):
        shutil.rmtree(folder / f"checkpoints/step-{step:08d}")
    [manifest] = (folder / "checkpoints").glob("step-*/manifest.json")
    content = json.loads(manifest.read_text())
    content["progress"]["stream"] |= {"block": 1, "used": 0, "rows": row, "files": [position], "ended": []}
    manifest.write_text(json.dumps(content))
    (folder / "result.json").unlink()


def news(folder: Path, *, in_background: bool) -> dict[str, Any]:
    text = SHARED / "data/text_classification/ag_news_7k/train.csv"
    return {
        "task": {"name": "text_classification", "max_length": 64},
        "model": str(encoder_folder()),
        "run_folder": str(folder),
        "data": {
            "train": {"path": str(text), "header": False, "columns": {"text": 0, "label": 1}},
            "cache_dir": str(WORK / "cache"),
        },
        "batch": {"global_size": 16, "micro_size": 16},
        "train": {"max_steps": STEPS},
        "checkpoint": {"every": EVERY, "async": in_background, "prove": "never"},
    }


def stream(folder: Path, rows: Path) -> dict[str, Any]:
    return {
        "task": "causal_lm",
        "model": str(SHARED / "weights/stories260K"),
        "run_folder": str(folder),
        "data": {"train": str(rows), "streaming": True, "shuffle_buffer": 1000, "cache_dir": str(WORK / "cache")},
        "batch": {"global_size": 16},
        "schedule": {"name": "constant"},
        "train": {"max_steps": 3},
        "checkpoint": {"every": 1, "keep": 3, "prove": "never"},
    }


def ftscale(config: dict[str, Any], *flags: str) -> None:
    """`ftscale train` in a fresh process."""
    file = WORK / "run.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "ftscale", "train", str(file), *flags]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, capture_output=True)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_start(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["started"]


if __name__ == "__main__":
    sys.exit(main())
