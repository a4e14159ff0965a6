"""What is done with a finished run: score it, predict with it, export it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import torch
from pydantic import ValidationError

from ftscale.config import Config, load_config, parse_config
from ftscale.config.overrides import apply_overrides
from ftscale.config.problems import problems_of
from ftscale.config.schema import DistributedConfig, Section, SourceConfig, TextSettings
from ftscale.data.sources import detect_format, read_rows
from ftscale.distributed import Distributed
from ftscale.errors import UserError
from ftscale.files import open_new, partial_path
from ftscale.inputs import evaluation_rows
from ftscale.launched import launched_rank
from ftscale.logs import log, setup_logging
from ftscale.models.load import load_processor
from ftscale.models.save import export_model, load_saved
from ftscale.processes import begin_work
from ftscale.run import batch_layout
from ftscale.tasks import build_task
from ftscale.tasks.base import KEPT, Layout, Row, Sample, Task
from ftscale.train.evaluate import evaluation_of, to_device
from ftscale.train.loop import TaskModule

FORMATS_OUT = (".csv", ".tsv", ".jsonl")
NAMED_COLUMNS = ("csv", "tsv", "jsonl", "json", "parquet", "hub")
"""Formats whose columns have names, so that names learned from one mean the same in another."""
TEXT_ROLES = {"source": "source", "words": "words"}
"""What a line of plain text is to a task, by the first of its columns; `text` to all others."""
STDIN_SUFFIX = ".stdin.txt"
ADDED = frozenset(("prediction", "score", "note"))
CHUNK = 8  # batches of rows held at a time: sorted by length among themselves


def evaluate_run(run_folder: Path, *, data: str | None = None, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of a run's model on its evaluation rows, or on the rows of `data`. Works under a launcher too.

    `overrides`: settings laid over the run's, e.g. `data.eval.0.encoding=latin-1`.
    Raises UserError: no finished run there; no evaluation rows; unreadable data.
    """
    setup_logging(rank=launched_rank())
    config, task, processor = _open_run(run_folder)
    if data is not None:
        like = (config.data.eval or config.data.train)[0].model_copy(update={"path": data, "limit": 0})
        config = config.model_copy(update={"data": config.data.model_copy(update={"eval": (like,)})})
    if overrides:
        config = parse_config(apply_overrides(config.model_dump(), overrides), source="the command line")
    rows = evaluation_rows(config, task, processor)
    distributed = Distributed(DistributedConfig(), precision="fp32", max_grad_norm=0)
    try:
        model = _load(run_folder, config, task).to(distributed.device)
        distributed.module = TaskModule(model, task)
        layout = batch_layout(model, config, task, distributed)
        return evaluation_of(config, task, processor, rows, distributed, layout=layout)()
    finally:
        distributed.close()


def predict_file(
    run_folder: Path, input_path: str, *, reading: Sequence[str] = (), out: Path | None = None, batch_size: int = 32
) -> int:
    """Predict for each row of a file (CSV, TSV, JSON lines, text, image folder; "-" = lines of standard input).

    Streams: no more than a few batches are in memory. Rows keep their order and their columns; `prediction` and
    `score` come after them, and `note` where the task drops rows that are too long (these have no prediction).
    `reading`: settings of a source, e.g. `input.columns.text=body`. Without `out`, JSON lines are printed; with it,
    the file is there when all rows are done. Returns the number of rows.
    Raises UserError: no finished run there; unreadable input; an unknown kind of `out`.
    """
    setup_logging()
    _check_out(out, input_path)
    config, task = _read_run(run_folder)
    with _input(input_path) as path:
        rows = _rows(_input_source(path, config, task, reading=reading), task)
        first = next(rows)  # what is wrong with the input is told before a model is loaded
        with open_predictor(run_folder, batch_size=batch_size) as predictor, _writer(out) as write:
            count = 0
            rows = chain([first], rows)
            for answer in predictor.answers(rows):
                write(answer)
                count += 1
    if out is not None:
        log.info("%d rows with predictions in %s", count, out)
    return count


@contextmanager
def open_predictor(run_folder: Path, *, batch_size: int = 32) -> Iterator[Predictor]:
    """The model of a finished run, on this machine's device, ready to predict. Raises UserError where there is none."""
    config, task, processor = _open_run(run_folder)
    distributed = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=0)
    try:
        model = _load(run_folder, config, task).to(distributed.device).eval()
        layout = batch_layout(model, config, task, distributed)
        module = TaskModule(model, task).eval()
        yield Predictor(config, task, processor, module, layout, distributed.device, batch_size)
    finally:
        distributed.close()


@dataclass
class Predictor:
    """A model, ready to answer rows in their order, a few batches at a time."""

    config: Config
    task: Task
    processor: Any
    module: torch.nn.Module
    """Model and task, in eval mode."""
    layout: Layout
    device: torch.device
    batch_size: int

    def answers(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        """Each row's own columns (`_columns`) with `prediction` and `score`; `CHUNK` batches of rows are held."""
        rows = iter(rows)
        while chunk := list(islice(rows, CHUNK * self.batch_size)):
            yield from self._chunk(chunk)

    def _chunk(self, rows: list[Row]) -> Iterator[dict[str, Any]]:
        samples = self.task.prepare(rows, self.processor, labelled=False)
        usable = [number for number, sample in enumerate(samples) if sample["note"] in KEPT]
        usable.sort(key=lambda number: samples[number]["length"])  # neighbours pad little
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(usable), self.batch_size):
            numbers = usable[start : start + self.batch_size]
            found.update(zip(numbers, self._batch([samples[number] for number in numbers], numbers), strict=True))
        settings = self.config.task
        drops = isinstance(settings, TextSettings) and settings.too_long == "drop"
        for number, (row, sample) in enumerate(zip(rows, samples, strict=True)):
            answer = found.get(number, {"prediction": None, "score": None})
            yield {**row["_columns"], **answer, **({"note": sample["note"]} if drops else {})}

    def _batch(self, samples: list[Sample], numbers: list[int]) -> list[dict[str, Any]]:
        collate = self.task.collator(self.processor, layout=self.layout, train=False)
        rows = [
            {**_without_counts(sample), "row": number, "epoch": 0, "seed": 0}
            for sample, number in zip(samples, numbers, strict=True)
        ]
        batch = to_device(collate(rows), self.device)
        with torch.no_grad():
            return self.task.predictions(self.module(batch, processor=self.processor), batch, self.processor)


def export_run(run_folder: Path, out: Path, *, merge: bool = False, dtype: str | None = None) -> list[str]:
    """Write the run's model as a plain Hugging Face folder; returns what there is to say about it.

    Raises UserError: no finished run there; `out` is not empty; `merge` without an adapter; an unknown dtype.
    """
    setup_logging()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT = {out} is not an empty folder; name a new one.")
    config, task, _ = _open_run(run_folder)
    report = export_model(
        run_folder / "model",
        out,
        auto_class=task.auto_class,
        merge=merge,
        dtype=dtype,
        trust_remote_code=config.model.trust_remote_code,
    )
    lines = [f"model in {out}"]
    if merge or dtype is not None:
        lines.append(f"largest change of a logit: {report['largest_logit_change']:.3g}")
    return lines


def _open_run(run_folder: Path) -> tuple[Config, Task, Any]:
    """The run's configuration, its task, and the processor saved with its model."""
    config, task = _read_run(run_folder)
    saved = config.model.model_copy(update={"name": str(run_folder / "model"), "processor": None, "revision": None})
    return config, task, load_processor(saved, kind=task.processor_class)


def _read_run(run_folder: Path) -> tuple[Config, Task]:
    if not (run_folder / "config.yaml").is_file():
        raise UserError(f"RUN_FOLDER = {run_folder} holds no run (no config.yaml in it); name the run_folder of one.")
    if not (run_folder / "model").is_dir():
        raise UserError(f"RUN_FOLDER = {run_folder} has no model yet; finish the run with ftscale train --resume.")
    config = load_config(run_folder / "config.yaml")
    return config, build_task(config.task)


def _load(run_folder: Path, config: Config, task: Task) -> Any:
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    begin_work()
    return load_saved(
        run_folder / "model",
        auto_class=task.auto_class,
        dtype=dtype,
        trust_remote_code=config.model.trust_remote_code,
    )


def _without_counts(sample: Sample) -> Sample:
    return {name: value for name, value in sample.items() if name not in ("targets", "note")}


# ---------------------------------------------------------------- input


@contextmanager
def _input(path: str) -> Iterator[str]:
    """The path to read; standard input is copied first, since a source is read from its start more than once."""
    if path != "-":
        yield path
        return
    with tempfile.NamedTemporaryFile("wb", suffix=STDIN_SUFFIX) as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name


def _input_source(path: str, config: Config, task: Task, *, reading: Sequence[str]) -> SourceConfig:
    """The input is read as the training data was, where it is of the same kind; `reading` is laid over that."""
    given = _parse_reading({"path": path}, reading)
    trained = config.data.train[0]
    base: dict[str, Any] = {"path": path}
    named_alike = given.format == "auto" and Path(path).is_file() and _suffix(path) == _suffix(trained.path)
    kind, trained_kind = _kind(given), _trained_kind(trained)
    if named_alike or kind == trained_kind:  # by name alone, since a table may be called .txt
        base = {**trained.model_dump(exclude_unset=True), "path": path, "limit": 0}
    elif kind in NAMED_COLUMNS and trained_kind in NAMED_COLUMNS:
        base["columns"] = {role: name for role, name in trained.columns.items() if isinstance(name, str)}
    elif kind == "text":
        base["columns"] = {TEXT_ROLES.get(task.columns[0][0], "text"): "text"}
    return _parse_reading(base, reading)


def _trained_kind(source: SourceConfig) -> str | None:
    try:
        return _kind(source)
    except UserError:  # the training data need not be here any more
        return None


def _suffix(path: str) -> str:
    return "".join(Path(path).suffixes[-2:])


def _kind(source: SourceConfig) -> str:
    return source.format if source.format != "auto" else detect_format(source.path, setting="input")


def _parse_reading(base: dict[str, Any], reading: Sequence[str]) -> SourceConfig:
    settings = apply_overrides({"input": base}, reading)
    try:
        return _Reading.model_validate(settings).input
    except ValidationError as error:
        raise UserError(*problems_of(error, model=_Reading, data=settings)) from error


class _Reading(Section):
    """How to read what is to be predicted on."""

    input: SourceConfig


def _rows(source: SourceConfig, task: Task) -> Iterator[Row]:
    """Rows with their own columns under `_columns`; of plain text, words are what white space separates."""
    for row in read_rows(source, roles=task.columns, setting="input", labelled=False, keep_columns=True):
        if isinstance(row.get("words"), str):
            row["words"] = row["words"].split()
        if taken := ADDED.intersection(row["_columns"]):
            raise UserError(f"input has a column {min(taken)!r}, which the answers would replace; rename it.")
        yield row


# ---------------------------------------------------------------- output


def _check_out(out: Path | None, input_path: str) -> None:
    if out is None:
        return
    if out.suffix not in FORMATS_OUT:
        raise UserError(f"--out = {out} must end in {', '.join(FORMATS_OUT)}; name such a file.")
    if not out.parent.is_dir():
        raise UserError(f"--out = {out} lies in a folder that does not exist; make {out.parent}, or name another.")
    if out.is_dir() or out.resolve() == Path(input_path).resolve():
        raise UserError(f"--out = {out} is the input or a folder; name another file.")


@contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes a row; the file has its name when all rows are written."""
    if out is None:
        yield lambda row: print(_json(row))
        return
    partial = partial_path(out)
    try:
        with open_new(partial, newline="") as file:
            yield (lambda row: print(_json(row), file=file)) if out.suffix == ".jsonl" else _table_writer(file, out)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _table_writer(file: TextIO, out: Path) -> Callable[[dict[str, Any]], None]:
    """CSV or TSV with the columns of the first row; lists and dicts are written as JSON."""
    table: list[csv.DictWriter] = []

    def write(row: dict[str, Any]) -> None:
        if not table:
            table.append(csv.DictWriter(file, list(row), delimiter="\t" if out.suffix == ".tsv" else ","))
            table[0].writeheader()
        if unknown := row.keys() - set(table[0].fieldnames):
            raise UserError(f"--out = {out}: a row has the column {min(unknown)!r}, the first has not; write .jsonl.")
        table[0].writerow({name: _cell(value) for name, value in row.items()})

    return write


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, (list, dict)) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_described)


def _described(value: Any) -> str:
    """What JSON cannot hold: the bytes of an image are left out."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
