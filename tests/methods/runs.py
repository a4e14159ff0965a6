"""Runs of methods on a few rows, and what of them is compared."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import tiny

TOYS = Path(__file__).resolve().parent / "toys"
ROWS = [
    ("a good film", 1),
    ("bad", 0),
    ("it is what it is and no more than that", 1),
    ("no", 0),
    ("so so", 1),
    ("a very long way to say that nobody liked it", 0),
    ("well done", 1),
    ("not again", 0),
]
PLAIN = {
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
    "schedule": {"name": "constant"},
    "train": {"max_steps": 3, "max_grad_norm": 0.0},
}
"""Steps that plain torch takes in a line."""


def run_of(shared: Path, work: Path, method: dict[str, Any], **changes: Any) -> Path:
    """The settings of a run of three steps, each over all rows."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    data = {"train": str(work / "rows.csv"), "cache_dir": str(work / "cache"), "shuffle": False}
    batch = {"global_size": len(ROWS), "micro_size": len(ROWS)}
    return tiny.write_run(
        work, tiny.settings(shared, work, method=method, data=data, batch=batch, **{**PLAIN, **changes})
    )


def toy(name: str, **settings: Any) -> dict[str, Any]:
    return {"file": str(TOYS / f"{name}.py"), "name": name, **settings}


def train(file: Path, *settings: str, processes: int = 1) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step."""
    start = tiny.command if processes == 1 else partial(tiny.forked, processes=processes)
    done = start("train", file, *settings)
    assert done.code == 0, done.stderr[-3000:]
    folder = next((word.partition("=")[2] for word in settings if word.startswith("run_folder=")), file.parent / "run")
    return tiny.steps(Path(folder))


def figures(lines: list[dict[str, Any]], name: str = "loss") -> list[float]:
    return [line[name] for line in lines]
