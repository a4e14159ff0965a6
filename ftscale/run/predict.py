"""What is done with a finished run: score it, predict with it, export it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ftscale.base.errors import UserError, counted
from ftscale.base.logs import log, setup_logging
from ftscale.config import Config
from ftscale.config.overrides import apply_overrides
from ftscale.config.problems import problems_of
from ftscale.config.schema import DistributedConfig, SourceConfig
from ftscale.config.section import Section
from ftscale.data.answers import FORMATS, Answer, open_answers
from ftscale.data.formats.select import role_problems
from ftscale.data.sample import Sample
from ftscale.data.sources import read_rows
from ftscale.distributed.runtime import Distributed
from ftscale.modalities.collate import Layout
from ftscale.models.trust import NO_TRUST, Trust
from ftscale.run.build_model import batch_layout
from ftscale.run.finished import bound_task, load_model, module_of, read_run
from ftscale.run.new_source import kind_of, source_like
from ftscale.tasks.base import Row, Task
from ftscale.tasks.rows import prepare_rows

STDIN_SUFFIX = ".stdin.txt"
TEXTS = ("text", "document")  # formats whose one column is a text, whatever the task calls it
CHUNK = 8  # batches of rows held at a time: sorted by length among themselves


def predict_file(
    run_folder: Path,
    input_path: str | Sequence[str],
    *,
    reading: Sequence[str] = (),
    out: Path | None = None,
    every_score: bool = False,
    batch_size: int = 32,
    trust: Trust = NO_TRUST,
) -> int:
    """Predict for each row of a file, or of several, of any format that trains.

    "-" is the standard input: lines of text, or one document where the run was trained on documents.
    Streams: no more than a few batches are in memory. Rows keep their order and their columns, cell for cell;
    `prediction` and `score` come after them, `entities` where words have tags, `scores` of every class where
    `every_score` asks for them, and `note` where rows may be dropped as too long, missing or blank (these have no
    prediction). `reading`: settings of a source, e.g. `input.columns.text=body`. Without `out`, JSON lines are printed;
    with it (CSV, TSV, JSON lines, Parquet, CoNLL), the file is there when all rows are done. Returns their number.
    `trust`: as of evaluate_run. Raises UserError: no finished run there; unreadable input; an unknown kind of `out`.
    """
    setup_logging()
    paths = [input_path] if isinstance(input_path, str) else input_path
    _check_out(out, paths)
    config, task = read_run(run_folder, trust=trust)
    _check_scores(task, every=every_score)
    by_word = out is not None and out.suffix == ".conll"
    if by_word and "tags_words" not in config.task.can:
        raise UserError(f"--out = {out} is for tags of words, not for task = {config.task.name}; name another kind.")
    with ExitStack() as inputs:
        sources = [_input_source(inputs.enter_context(_input(path)), config, reading=reading) for path in paths]
        added = _added(task, sources, every=every_score)
        first, *more = (_rows(source, task, added=added) for source in sources)
        first_row = next(first)  # what is wrong with an input is told before a model is loaded
        for source in sources[1:]:
            next(_rows(source, task, added=added))
        kinds = {kind_of(source) for source in sources}
        form = kinds.pop() if len(kinds) == 1 else "several"
        with (
            open_predictor(run_folder, batch_size=batch_size, trust=trust) as predictor,
            open_answers(out, source=sources[0], form=form) as write,
        ):
            count = 0
            rows = chain([first_row], first, *more)
            for answer in predictor.answers(rows, every=every_score or by_word, noted="note" in added):
                write(answer)
                count += 1
    if out is not None:
        log.info("%s with predictions in %s", counted(count, "row"), out)
    return count


@contextmanager
def open_predictor(run_folder: Path, *, batch_size: int = 32, trust: Trust = NO_TRUST) -> Iterator[Predictor]:
    """The model of a finished run, on this machine's device, ready to predict. Raises UserError where there is none."""
    config, task = read_run(run_folder, trust=trust)
    task = bound_task(run_folder, config, task)
    distributed = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=0)
    try:
        model = load_model(run_folder, config, task).to(distributed.device).eval()
        layout = batch_layout(model, config, task, distributed)
        module = module_of(run_folder, model, task).eval()
        yield Predictor(task, module, layout, distributed.device, batch_size)
    finally:
        distributed.close()


@dataclass
class Predictor:
    """A model, ready to answer rows in their order, a few batches at a time."""

    task: Task
    module: torch.nn.Module
    """Model and task, in eval mode."""
    layout: Layout
    device: torch.device
    batch_size: int

    def answers(self, rows: Iterable[Row], *, every: bool = False, noted: bool = False) -> Iterator[Answer]:
        """Each row's own columns (`_columns`) and its `prediction` and `score`; `CHUNK` batches of rows are held.

        `every`: also the scores of all classes; `noted`: also why a row has no prediction.
        """
        rows = iter(rows)
        while chunk := list(islice(rows, CHUNK * self.batch_size)):
            yield from self._chunk(chunk, every=every, noted=noted)

    def _chunk(self, rows: list[Row], *, every: bool, noted: bool) -> Iterator[Answer]:
        samples = prepare_rows(self.task, rows, labelled=False)
        usable = [number for number, sample in enumerate(samples) if not sample.drop]
        usable.sort(key=lambda number: samples[number].cost)  # neighbours pad little
        found: dict[int, dict[str, Any]] = {}
        for start in range(0, len(usable), self.batch_size):
            numbers = usable[start : start + self.batch_size]
            found.update(zip(numbers, self._batch(samples, numbers, every=every), strict=True))
        nothing = dict.fromkeys(self.task.answer_names(every=every))
        for row, of_row in zip(rows, samples_by_row(samples, len(rows)), strict=True):
            answers = [found[place] for place in of_row if place in found]
            note = _said_of([samples[place] for place in of_row])
            answer = self.task.merge(answers) if answers else nothing
            yield Answer(row["_columns"], {**answer, **({"note": note} if noted else {})}, words=row.get("words"))

    def _batch(self, samples: list[Sample], numbers: list[int], *, every: bool) -> list[dict[str, Any]]:
        chosen = [replace(samples[number], number=number) for number in numbers]
        batch = self.task.collate(chosen, layout=self.layout, train=False).to(self.device)
        with torch.no_grad():
            return self.task.predictions(self.module(batch=batch), batch, every=every)


def samples_by_row(samples: Sequence[Sample], num_rows: int) -> list[list[int]]:
    """The places of the samples of each row; samples that are parts of rows say of which (`Sample.rows`)."""
    places: list[list[int]] = [[] for _ in range(num_rows)]
    for place, sample in enumerate(samples):
        first, stop = sample.rows or (place, place + 1)
        for row in range(first, stop):
            places[row].append(place)
    return places


def _said_of(samples: Sequence[Sample]) -> str:
    """Why a row has no answer, or that it was cut."""
    dropped = next((sample.drop for sample in samples if sample.drop), "")
    return dropped or ("truncated" if any(sample.truncated for sample in samples) else "")


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


def _input_source(path: str, config: Config, *, reading: Sequence[str]) -> SourceConfig:
    """The input is read as the run's own data were, where one is of the same kind; `reading` is laid over that."""
    given = _parse_reading({"path": path}, reading)
    known = [*config.data.train, *config.data.eval, *config.data.test]
    like = source_like(known, path, config, form=given.format)
    base, role = like.model_dump(exclude_unset=True), config.task.text_column
    source = _parse_reading(base, reading)
    as_texts = kind_of(source) in TEXTS and source.pattern is None
    if as_texts and role is not None and (like.pattern or not like.columns):  # of a pattern's groups nothing is left
        source = _parse_reading({**base, "columns": {role: "text"}}, reading)
    if problems := role_problems(source, roles=config.task.roles, setting="input"):
        raise UserError(*problems)
    return source


def _parse_reading(base: dict[str, Any], reading: Sequence[str]) -> SourceConfig:
    settings = apply_overrides({"input": base}, reading)
    try:
        return _Reading.model_validate(settings).input
    except ValidationError as error:
        raise UserError(*problems_of(error, model=_Reading, data=settings)) from error


class _Reading(Section):
    """How to read what is to be predicted on."""

    input: SourceConfig


def _rows(source: SourceConfig, task: Task, *, added: Sequence[str]) -> Iterator[Row]:
    """Rows with their own columns under `_columns`, as the task takes rows to predict on."""
    settings = task.settings
    rows = read_rows(source, roles=settings.roles, setting="input", absent=settings.label_columns, keep_columns=True)
    for row in rows:
        if taken := {name for name, _ in row["_columns"]}.intersection(added):
            raise UserError(f"input has a column {min(taken)!r}, which the answers would replace; rename it.")
        yield task.input_row(row)


def _added(task: Task, sources: Sequence[SourceConfig], *, every: bool) -> list[str]:
    """The names of the columns that come after a row's own."""
    drops = any(not {"unlabelled"}.issuperset(source.drop) for source in sources)
    drops = drops or getattr(task.settings, "too_long", "") == "drop"
    return [*task.answer_names(every=every), *(["note"] if drops else [])]


def _check_out(out: Path | None, paths: Sequence[str]) -> None:
    if out is None:
        return
    if out.suffix not in FORMATS:
        raise UserError(f"--out = {out} must end in {', '.join(FORMATS)}; name such a file.")
    if not out.parent.is_dir():
        raise UserError(f"--out = {out} lies in a folder that does not exist; make {out.parent}, or name another.")
    if out.is_dir() or out.resolve() in [Path(path).resolve() for path in paths]:
        raise UserError(f"--out = {out} is an input or a folder; name another file.")


def _check_scores(task: Task, *, every: bool) -> None:
    if every and not task.has_classes:
        name = task.settings.name
        raise UserError(f"--scores = all is for tasks with classes, but task = {name} has none; leave it out.")
