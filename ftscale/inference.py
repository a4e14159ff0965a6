"""What is done with a finished run: score it, predict with it, export it."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ftscale.config import Config, load_config
from ftscale.config.schema import DistributedConfig, SourceConfig
from ftscale.data.sources import detect_format, read_rows
from ftscale.distributed import Distributed
from ftscale.errors import UserError
from ftscale.logs import launched_rank, log, setup_logging
from ftscale.models.load import load_processor
from ftscale.models.save import export_model, load_saved
from ftscale.run import Preparer, batch_layout, evaluation_rows, run_evaluation
from ftscale.tasks import build_task
from ftscale.tasks.base import KEPT, Task
from ftscale.train.evaluate import to_device
from ftscale.train.loop import TaskModule

FORMATS_OUT = (".csv", ".tsv", ".jsonl")


def evaluate_run(run_folder: Path, *, data: str | None = None) -> dict[str, float]:
    """Metrics of a run's model on its evaluation rows, or on the rows of `data`. Works under a launcher too.

    Raises UserError: no finished run there; no evaluation rows; unreadable data.
    """
    setup_logging(rank=launched_rank())
    config, task, processor = _open_run(run_folder)
    rows = evaluation_rows(config, task, processor, data=data)
    distributed = Distributed(DistributedConfig(), precision="fp32", max_grad_norm=0)
    try:
        model = _load(run_folder, config, task).to(distributed.device)
        distributed.module = TaskModule(model, task)
        layout = batch_layout(model, config, task, distributed)
        return run_evaluation(config, task, processor, rows, distributed, layout=layout)()
    finally:
        distributed.close()


def predict_file(run_folder: Path, input_path: str, *, out: Path | None = None, batch_size: int = 32) -> int:
    """Predict for each row of a file (CSV, TSV, JSON lines, text, image folder; "-" = lines of standard input).

    Streams: no more than a few batches are in memory. Rows keep their order and their columns; `prediction` and
    `score` come after them. Without `out`, JSON lines are printed. Returns the number of rows.
    Raises UserError: no finished run there; unreadable input; an unknown kind of `out`.
    """
    setup_logging()
    if out is not None and out.suffix not in FORMATS_OUT:
        raise UserError(f"--out = {out} must end in {', '.join(FORMATS_OUT)}.")
    config, task, processor = _open_run(run_folder)
    distributed = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=0)
    device = distributed.device
    model = _load(run_folder, config, task).to(device).eval()
    module = TaskModule(model, task).eval()
    collate = task.collator(processor, layout=batch_layout(model, config, task, distributed), train=False)
    prepare = Preparer(task, processor, labelled=False)

    def predict(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        samples = prepare(rows)
        numbered = [{**sample, "row": number, "epoch": 0, "seed": 0} for number, sample in enumerate(samples)]
        usable = [sample for sample in numbered if sample["note"] in KEPT]
        usable.sort(key=lambda sample: sample["length"])  # neighbours pad little
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(usable), batch_size):
            part = [_without_counts(sample) for sample in usable[start : start + batch_size]]
            batch = to_device(collate(part), device)
            with torch.no_grad():
                answers = task.predictions(module(batch, processor=processor), batch, processor)
            found.update(zip((sample["row"] for sample in part), answers, strict=True))
        for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
            answer = found.get(number, {"prediction": None, "score": None, "note": sample["note"]})
            yield {**row["_columns"], **answer}

    with _input(input_path) as path:
        rows = iter(
            read_rows(
                _input_source(path, config), roles=task.columns, setting="INPUT", labelled=False, keep_columns=True
            )
        )
        chunks = iter(lambda: list(islice(rows, 8 * batch_size)), [])
        with _writer(out) as write:
            count = 0
            for chunk in chunks:
                for answer in predict(chunk):
                    write(answer)
                    count += 1
    if out is not None:
        log.info("%d rows with predictions in %s", count, out)
    return count


def export_run(run_folder: Path, out: Path, *, merge: bool = False, dtype: str | None = None) -> list[str]:
    """Write the run's model as a plain Hugging Face folder; returns what there is to say about it.

    Raises UserError: no finished run there; `out` is not empty; `merge` without an adapter; an unknown dtype.
    """
    setup_logging()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT = {out} is not an empty folder; name a new one.")
    _, task, _ = _open_run(run_folder)
    report = export_model(run_folder / "model", out, auto_class=task.auto_class, merge=merge, dtype=dtype)
    lines = [f"model in {out}"]
    if "largest_logit_change" in report:
        lines.append(f"largest change of a logit by merging: {report['largest_logit_change']:.3g}")
    return lines


def _open_run(run_folder: Path) -> tuple[Config, Task, Any]:
    if not (run_folder / "config.yaml").is_file():
        raise UserError(f"RUN_FOLDER = {run_folder} holds no run (no config.yaml in it); name the run_folder of one.")
    if not (run_folder / "model").is_dir():
        raise UserError(f"RUN_FOLDER = {run_folder} has no model yet; finish the run with ftscale train --resume.")
    config = load_config(run_folder / "config.yaml")
    task = build_task(config.task)
    saved = config.model.model_copy(update={"name": str(run_folder / "model"), "processor": None, "revision": None})
    return config, task, load_processor(saved, kind=task.processor_class)


def _load(run_folder: Path, config: Config, task: Task) -> Any:
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return load_saved(run_folder / "model", auto_class=task.auto_class, dtype=dtype)


def _without_counts(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name not in ("targets", "note")}


@contextmanager
def _input(path: str) -> Iterator[str]:
    if path != "-":
        yield path
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(sys.stdin)
        file.flush()
        yield file.name


def _input_source(path: str, config: Config) -> SourceConfig:
    """The input is read as the training data was, where it is of the same kind."""
    trained = config.data.train[0]
    source = SourceConfig(path=path)
    if (trained.format if trained.format != "auto" else detect_format(trained.path)) == detect_format(path):
        source = trained.model_copy(update={"path": path, "limit": 0})
    return source


@contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    if out is None or out.suffix == ".jsonl":
        with open(out, "w", encoding="utf-8") if out else _stdout() as file:
            yield lambda row: print(json.dumps(row, ensure_ascii=False, default=str), file=file)
        return
    with open(out, "w", encoding="utf-8", newline="") as file:
        table: list[csv.DictWriter] = []

        def write(row: dict[str, Any]) -> None:
            if not table:
                table.append(csv.DictWriter(file, list(row), delimiter="\t" if out.suffix == ".tsv" else ","))
                table[0].writeheader()
            table[0].writerow({name: _cell(value) for name, value in row.items()})

        yield write


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


@contextmanager
def _stdout() -> Iterator[Any]:
    yield sys.stdout
