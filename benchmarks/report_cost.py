"""What the page of a long run costs: 100,000 optimizer steps, and a million records of rows.

    python benchmarks/report_cost.py [--steps 100000] [--rows 1000000]

First a real run: MiniLM on 4,000 rows of Banking77 for one epoch, with three evaluations of 1,000 rows. `share` is
the time inside all that is done for the page, over that of the run: two runs, with and without it, differ by more
than that anyway.

A run folder of that size is made up. Measured: seconds and memory at the peak of `ftscale report` beside those for a
short run, bytes of the page, and the seconds until a Chromium has drawn all of it. Besides, what `write_row_records`
takes for so many rows. Results go into benchmarks/results/report_cost.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from speed import hardware, rounded, versions

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks/results/report_cost.json"
WORK = ROOT / "runs/report"
CLASSES = 20
SHORT = (100, 1000)
"""Steps and rows of the run that the long one is compared with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    share = share_of_a_run()
    runs = {}
    for steps, rows in (SHORT, (arguments.steps, arguments.rows)):
        folder = WORK / f"{steps}_{rows}"
        records = make_run(folder, steps=steps, rows=rows)
        runs[f"{steps} steps, {rows} rows"] = rounded({**records, **measure(folder)})
    record = {
        "a_run": share,
        "runs": runs,
        "command": f"python benchmarks/report_cost.py --steps {arguments.steps} --rows {arguments.rows}",
        "hardware": hardware(),
        "versions": versions(),
    }
    print(json.dumps(record, indent=1))
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def share_of_a_run() -> dict[str, float]:
    """Seconds of a real run, of what is written for its page in it, and the share."""
    command = [sys.executable, str(Path(__file__)), "--train"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def trained() -> dict[str, float]:
    """In a process of its own, whose functions are timed."""
    from ftscale.config import parse_config
    from ftscale.demo.__main__ import encoder_folder
    from ftscale.run import final_model, train

    spent = dict.fromkeys(("write_row_records", "write_data_report", "write_page"), 0.0)

    def timed(function: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            start = time.perf_counter()
            function(*arguments)
            spent[function.__name__] += time.perf_counter() - start

        return run

    for module in (train, final_model):
        for name in spent:
            if hasattr(module, name):
                setattr(module, name, timed(getattr(module, name)))
    rows = SHARED / "data/text_classification/banking77"
    source = {"columns": {"label": "category"}}
    config = {
        "task": {"name": "text_classification", "max_length": 64},
        "model": str(encoder_folder()),
        "run_folder": str(WORK / "real"),
        "data": {
            "train": {"path": str(rows / "train.csv"), "limit": 4000, **source},
            "eval": {"path": str(rows / "test.csv"), "limit": 1000, **source},
            "cache_dir": str(WORK / "cache"),
        },
        "batch": {"global_size": 32},
        "train": {"epochs": 1},
        "evaluation": {"every": 42},
    }
    start = time.perf_counter()
    train.train(parse_config(config, source="benchmarks/report_cost.py"))
    whole = time.perf_counter() - start
    return rounded(
        {"run_s": whole, **{f"{name}_s": value for name, value in spent.items()}, "share": sum(spent.values()) / whole}
    )


def make_run(folder: Path, *, steps: int, rows: int) -> dict[str, float]:
    """A run folder; the seconds that its records of rows took."""
    from ftscale.base.sealed import write_json
    from ftscale.config import parse_config, write_config
    from ftscale.train.row_records import record_path, write_row_records

    folder.mkdir(parents=True)
    settings = {"task": "text_classification", "model": "a", "data": {"train": "a.csv"}, "run_folder": str(folder)}
    write_config(parse_config(settings, source="benchmarks/report_cost.py"), folder / "config.yaml")
    write_json(folder / "run.json", {"num_steps": steps, "world_size": 1, "versions": {}})
    best = {"step": steps, "metric": "accuracy", "value": 0.8}
    write_json(folder / "result.json", {"status": "completed", "steps": steps, "best": best}, seal=False)
    noise = np.random.default_rng(0).normal(size=steps)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            figures = {"loss": 2 + noise[step - 1] / 5, "grad_norm": 1.0, "lr": 1e-4, "tokens": 4096, "step_s": 0.1}
            about = {"kind": "train", "step": step, "time_s": step / 10, "tokens_per_s": 40960.0, "memory_bytes": 2**30}
            file.write(json.dumps({**about, **figures}) + "\n")
            if step % (steps // 20) == 0:
                scores = {"loss": 2.0, "accuracy": 0.8}
                file.write(json.dumps({"kind": "eval", "step": step, "time_s": step / 10, **scores}) + "\n")
    start = time.perf_counter()
    write_row_records(record_path(folder, "eval", steps), *made_up(rows))
    return {"records_s": time.perf_counter() - start}


def made_up(rows: int) -> tuple[Any, Any, Any]:
    """A task, an evaluator and prepared rows, as far as records of rows ask for them."""
    from types import SimpleNamespace

    import datasets

    from ftscale.config.tasks.text_classification import TextClassificationSettings
    from ftscale.data.sample import WHERE
    from ftscale.tasks.text_classification import TextClassification

    labels = tuple(f"class {number}" for number in range(CLASSES))
    task = TextClassification(TextClassificationSettings(problem="single_label", labels=labels))
    evaluator, random = task.evaluator(), np.random.default_rng(1)
    truth, right = random.integers(0, CLASSES, rows), random.random(rows) < 0.8
    guesses = np.where(right, truth, random.integers(0, CLASSES, rows))
    columns = (random.exponential(size=rows), guesses, truth, random.uniform(0.05, 1, rows))
    evaluator.records = dict(enumerate(zip(*(column.tolist() for column in columns), strict=True)))
    prepared = SimpleNamespace(
        dataset=datasets.Dataset.from_dict({WHERE: [f"rows.csv:{number}" for number in range(rows)]}),
        costs=random.integers(5, 200, rows),
        sample=lambda number: number,
    )
    prepared.groups = []
    shown = SimpleNamespace(show_input=lambda sample, processor: f"the text of row {sample}, " * 20)
    return SimpleNamespace(modality=shown, processor=None, words=lambda sample: None), evaluator, prepared


def measure(folder: Path) -> dict[str, float]:
    """What the command takes, and what a browser does."""
    command = [sys.executable, str(Path(__file__)), "--one", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one(folder: Path) -> dict[str, float]:
    """In a process of its own, so that the peak of its child is that of this one child."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ftscale", "report", str(folder)], check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    page = folder / "report.html"
    return {"page_s": seconds, "peak_mib": peak, "page_mb": page.stat().st_size / 1e6, "opened_s": opened(page)}


def opened(page: Path) -> float:
    """Seconds until every picture is drawn."""
    from playwright.sync_api import sync_playwright

    drawn = "() => [...document.querySelectorAll('[data-chart]')].every((place) => place.querySelector('svg'))"
    with sync_playwright() as playwright:
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        view = browser.new_page()
        start = time.perf_counter()
        view.goto(page.as_uri())
        view.wait_for_function(drawn)
        return time.perf_counter() - start


if __name__ == "__main__":
    if sys.argv[1:] == ["--train"]:
        print(json.dumps(trained()))
    elif sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(Path(sys.argv[2]))))
    else:
        main()
