"""What is done with a finished run: score it, predict with it, export it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ftscale.agreement import check_agreement, rows_text
from ftscale.build_model import batch_layout
from ftscale.config import Config, load_config, parse_config
from ftscale.config.overrides import apply_overrides
from ftscale.config.own_task import reading_of_strangers
from ftscale.config.problems import problems_of
from ftscale.config.schema import DistributedConfig, SourceConfig
from ftscale.config.section import Section
from ftscale.data.answers import FORMATS, Answer, open_answers
from ftscale.data.formats.select import role_problems
from ftscale.data.sample import Sample
from ftscale.data.sources import detect_format, read_rows
from ftscale.distributed import Distributed
from ftscale.errors import UserError, counted
from ftscale.inputs import evaluation_rows
from ftscale.launched import launched_rank
from ftscale.logs import log, setup_logging
from ftscale.methods import build_method
from ftscale.methods.base import Method
from ftscale.methods.extra import load_extra
from ftscale.modalities.collate import Layout
from ftscale.models.save import export_model, load_saved
from ftscale.models.trust import NO_TRUST, NeedsCodeError, Trust, needed_code
from ftscale.processes import begin_work
from ftscale.tasks.base import Row, Task
from ftscale.tasks.rows import prepare_rows
from ftscale.train.evaluate import evaluation_of
from ftscale.train.loop import TaskModule

NAMED_COLUMNS = ("csv", "tsv", "jsonl", "json", "parquet", "hub")
"""Formats whose columns have names, so that names learned from one mean the same in another."""
STDIN_SUFFIX = ".stdin.txt"
OF_HUB_AND_FOLDERS = ("name", "split")
"""Settings of a source that say which part of it is read, and so mean nothing for another one."""
CHUNK = 8  # batches of rows held at a time: sorted by length among themselves


def evaluate_run(
    run_folder: Path, *, data: str | None = None, overrides: Sequence[str] = (), trust: Trust = NO_TRUST
) -> dict[str, float]:
    """Metrics of a run's model on its evaluation rows, or on the rows of `data`. Works under a launcher too.

    `overrides`: settings laid over the run's, e.g. `data.eval.0.encoding=latin-1`. `trust`: what may be run of the
    model; what the run folder itself says of that does not count.
    Raises UserError: no finished run there; no evaluation rows; unreadable data.
    """
    setup_logging(rank=launched_rank())
    config, task = _read_run(run_folder, trust=trust)
    if data is not None:
        like = _source_like((config.data.eval or config.data.train)[0], data, config, setting="--data: data.eval[0]")
        config = config.model_copy(update={"data": config.data.model_copy(update={"eval": (like,)})})
    if overrides:
        config = parse_config(apply_overrides(config.model_dump(), overrides), source="the command line")
    _check_columns(config)
    task = _bound(run_folder, config, task)
    rows = evaluation_rows(config, task)
    distributed = Distributed(DistributedConfig(), precision="fp32", max_grad_norm=0)
    try:
        check_agreement({"data.eval": rows_text(rows)}, distributed.gather_objects)
        model = _load(run_folder, config, task).to(distributed.device)
        distributed.module = _module(run_folder, model, task)
        layout = batch_layout(model, config, task, distributed)
        return evaluation_of(config, task, rows, distributed, layout=layout)()
    finally:
        distributed.close()


def _check_columns(config: Config) -> None:
    """Raise UserError for names under `columns` of the evaluation rows that the task never reads."""
    also = [config.data.stratify] if config.data.stratify else []
    problems = [
        problem
        for number, source in enumerate(config.data.eval)
        for problem in role_problems(source.columns, roles=config.task.roles, setting=f"data.eval[{number}]", also=also)
    ]
    if problems:
        raise UserError(*problems)


def predict_file(
    run_folder: Path,
    input_path: str,
    *,
    reading: Sequence[str] = (),
    out: Path | None = None,
    every_score: bool = False,
    batch_size: int = 32,
    trust: Trust = NO_TRUST,
) -> int:
    """Predict for each row of a file (of any format that trains; "-" = lines of standard input).

    Streams: no more than a few batches are in memory. Rows keep their order and their columns, cell for cell;
    `prediction` and `score` come after them, `entities` where words have tags, `scores` of every class where
    `every_score` asks for them, and `note` where rows may be dropped as too long, missing or blank (these have no
    prediction). `reading`: settings of a source, e.g. `input.columns.text=body`. Without `out`, JSON lines are printed;
    with it (CSV, TSV, JSON lines, Parquet, CoNLL), the file is there when all rows are done. Returns their number.
    `trust`: as of evaluate_run. Raises UserError: no finished run there; unreadable input; an unknown kind of `out`.
    """
    setup_logging()
    _check_out(out, input_path)
    config, task = _read_run(run_folder, trust=trust)
    _check_scores(task, every=every_score)
    by_word = out is not None and out.suffix == ".conll"
    if by_word and "tags_words" not in config.task.can:
        raise UserError(f"--out = {out} is for tags of words, not for task = {config.task.name}; name another kind.")
    with _input(input_path) as path:
        source = _input_source(path, config, reading=reading)
        added = _added(task, source, every=every_score)
        rows = _rows(source, task, added=added)
        first = next(rows)  # what is wrong with the input is told before a model is loaded
        with (
            open_predictor(run_folder, batch_size=batch_size, trust=trust) as predictor,
            open_answers(out, source=source, form=_kind(source)) as write,
        ):
            count = 0
            rows = chain([first], rows)
            for answer in predictor.answers(rows, every=every_score or by_word, noted="note" in added):
                write(answer)
                count += 1
    if out is not None:
        log.info("%s with predictions in %s", counted(count, "row"), out)
    return count


@contextmanager
def open_predictor(run_folder: Path, *, batch_size: int = 32, trust: Trust = NO_TRUST) -> Iterator[Predictor]:
    """The model of a finished run, on this machine's device, ready to predict. Raises UserError where there is none."""
    config, task = _read_run(run_folder, trust=trust)
    task = _bound(run_folder, config, task)
    distributed = Distributed(DistributedConfig(strategy="single"), precision="fp32", max_grad_norm=0)
    try:
        model = _load(run_folder, config, task).to(distributed.device).eval()
        layout = batch_layout(model, config, task, distributed)
        module = _module(run_folder, model, task).eval()
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


def export_run(
    run_folder: Path, out: Path, *, merge: bool = False, dtype: str | None = None, trust: Trust = NO_TRUST
) -> list[str]:
    """Write the run's model as a plain Hugging Face folder; returns what there is to say about it.

    `trust`: as of evaluate_run.
    Raises UserError: no finished run there; `out` is not empty; `merge` without an adapter; an unknown dtype.
    """
    setup_logging()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"OUT = {out} is not an empty folder; name a new one.")
    config, task = _read_run(run_folder, trust=trust)
    _say_what_is_left_out(run_folder, config)
    report = export_model(
        run_folder / "model",
        out,
        auto_class=task.auto_class,
        probe=task.modality.probe,
        merge=merge,
        dtype=dtype,
        trust=trust,
    )
    lines = [f"model in {out}"]
    if merge or dtype is not None:
        lines.append(f"largest change of a logit: {report['largest_logit_change']:.3g}")
    return lines


def _bound(run_folder: Path, config: Config, task: Method) -> Method:
    """The task with the processor that was saved with the model."""
    folder = run_folder / "model"
    saved = config.model.model_copy(update={"name": str(folder), "processor": None, "revision": None})
    try:
        processor = task.modality.load_processor(saved)
    except NeedsCodeError as error:
        raise needed_code(folder) from error
    return build_method(config.method, config.task, processor)


def _read_run(run_folder: Path, *, trust: Trust) -> tuple[Config, Method]:
    """The run's configuration and task; what its folder says of trust gives way to what the user does."""
    if not (run_folder / "config.yaml").is_file():
        raise UserError(f"RUN_FOLDER = {run_folder} holds no run (no config.yaml in it); name the run_folder of one.")
    if not (run_folder / "model").is_dir():
        raise UserError(f"RUN_FOLDER = {run_folder} has no model yet; finish the run with ftscale train --resume.")
    with nullcontext() if trust.code else reading_of_strangers():
        config = load_config(run_folder / "config.yaml")
    trusted = config.model.model_copy(update={"trust_remote_code": trust.code, "allow_pickle": trust.pickle})
    return config.model_copy(update={"model": trusted}), build_method(config.method, config.task)


def _load(run_folder: Path, config: Config, task: Task) -> Any:
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    _say_what_is_left_out(run_folder, config)
    begin_work()
    return load_saved(
        run_folder / "model",
        auto_class=task.auto_class,
        dtype=dtype,
        trust=Trust(code=config.model.trust_remote_code, pickle=config.model.allow_pickle),
    )


def _module(run_folder: Path, model: torch.nn.Module, task: Method) -> TaskModule:
    """Model and method in one, with the weights of its own that the method has learned."""
    module = TaskModule(model, task)
    load_extra(module.extra, run_folder / "model")
    return module


def _say_what_is_left_out(run_folder: Path, config: Config) -> None:
    with reading_of_strangers():
        said = load_config(run_folder / "config.yaml").model.trust_remote_code
    if said and not config.model.trust_remote_code:
        log.warning("the run was trained with code that came with its model; without --trust-remote-code it is not run")


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


def _input_source(path: str, config: Config, *, reading: Sequence[str]) -> SourceConfig:
    """The input is read as the training data was, where it is of the same kind; `reading` is laid over that."""
    given = _parse_reading({"path": path}, reading)
    base = _source_like(config.data.train[0], path, config, form=given.format).model_dump(exclude_unset=True)
    role = config.task.text_column
    if _kind(given) == "text" and "columns" not in base and role is not None:
        base["columns"] = {role: "text"}
    source = _parse_reading(base, reading)
    if problems := role_problems(source.columns, roles=config.task.roles, setting="input"):
        raise UserError(*problems)
    return source


def _source_like(
    like: SourceConfig, path: str, config: Config, *, form: str = "auto", setting: str = "input"
) -> SourceConfig:
    """A path as a source of the run: with the settings of another where it is of the same kind, else its columns."""
    given = SourceConfig(path=path, format=form)
    own_roles = {role for alternative in config.task.columns for role in alternative}
    columns = {role: name for role, name in like.columns.items() if role in own_roles}
    named_alike = form == "auto" and Path(path).is_file() and _suffix(path) == _suffix(like.path)
    kind, like_kind = _kind(given, setting=setting), _trained_kind(like)
    if named_alike or kind == like_kind:  # by name alone, since a table may be called .txt
        settings = {**like.model_dump(exclude_unset=True), "path": path, "limit": 0, "columns": columns}
        return SourceConfig(**{name: value for name, value in settings.items() if name not in OF_HUB_AND_FOLDERS})
    if kind in NAMED_COLUMNS and like_kind in NAMED_COLUMNS:
        columns = {role: name for role, name in columns.items() if isinstance(name, str)}
        return SourceConfig(path=path, columns=columns, missing_values=like.missing_values)
    return SourceConfig(path=path)


def _trained_kind(source: SourceConfig) -> str | None:
    try:
        return _kind(source)
    except UserError:  # the training data need not be here any more
        return None


def _suffix(path: str) -> str:
    return "".join(Path(path).suffixes[-2:])


def _kind(source: SourceConfig, *, setting: str = "input") -> str:
    return source.format if source.format != "auto" else detect_format(source.path, setting=setting)


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


def _added(task: Task, source: SourceConfig, *, every: bool) -> list[str]:
    """The names of the columns that come after a row's own."""
    drops = bool(source.drop) or getattr(task.settings, "too_long", "") == "drop"
    return [*task.answer_names(every=every), *(["note"] if drops else [])]


# ---------------------------------------------------------------- output


def _check_out(out: Path | None, input_path: str) -> None:
    if out is None:
        return
    if out.suffix not in FORMATS:
        raise UserError(f"--out = {out} must end in {', '.join(FORMATS)}; name such a file.")
    if not out.parent.is_dir():
        raise UserError(f"--out = {out} lies in a folder that does not exist; make {out.parent}, or name another.")
    if out.is_dir() or out.resolve() == Path(input_path).resolve():
        raise UserError(f"--out = {out} is the input or a folder; name another file.")


def _check_scores(task: Task, *, every: bool) -> None:
    if every and not task.has_classes:
        name = task.settings.name
        raise UserError(f"--scores = all is for tasks with classes, but task = {name} has none; leave it out.")
