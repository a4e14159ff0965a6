"""Everything that is known before a process group exists: the checked configuration and its prepared rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.config import Config
from ftscale.config.own_task import file_hash
from ftscale.config.schema import MethodField, TaskField
from ftscale.data.census import contradicting, odd_labels, row_warnings, shared, shared_warning
from ftscale.data.formats.copies import copies_in
from ftscale.data.order import GlobalOrder
from ftscale.data.prepare import Prepared, cache_folder, prepare_sources, processor_key, split_rows
from ftscale.data.sample import Sample
from ftscale.data.sources import read_rows
from ftscale.methods import build_method
from ftscale.methods.base import Method
from ftscale.precheck import check_config, machine_problems, metric_problems, steps_problems
from ftscale.precheck.fit import fitted
from ftscale.precheck.vocabulary import vocabulary_warnings
from ftscale.tasks.base import Task
from ftscale.tasks.rows import left_out, prepare_rows
from ftscale.version import __version__


@dataclass
class Inputs:
    """Everything known before a process group exists."""

    config: Config
    """With what the training rows told filled in, e.g. labels."""
    task: Method
    """The method and the task in it, bound to its processor."""
    train: Prepared | None
    """None where training rows are streamed."""
    evaluation: Prepared | None
    test: Prepared | None


def prepare_inputs(config: Config) -> Inputs:
    """Check the configuration and prepare its data: no process group, no weights."""
    if problems := machine_problems(config):
        raise UserError(*problems)
    processor = check_config(config)
    with copies_in(None if config.data.streaming else cache_folder(config.data) / "remote"):
        return _prepared_inputs(config, processor)


def _prepared_inputs(config: Config, processor: Any) -> Inputs:
    task, data = build_method(config.method, config.task), config.data
    held = held_out(config, task) if splits(config) else None
    config, task, learned = fitted(config, task, processor, _training_rows(config, task))
    if problems := metric_problems(config, task):
        raise UserError(*problems)
    prepare = Preparer(task)
    train_rows: Prepared | None
    evaluation: Prepared | None
    if held is not None:
        train_rows = _prepare(config, prepare, "train", keep=lambda source, row: row not in held[source])
        evaluation = _prepare(config, prepare, "eval", keep=lambda source, row: row in held[source])
    else:
        train_rows = None if data.streaming else _prepare(config, prepare, "train")
        evaluation = _prepare(config, prepare, "eval") if data.eval else None
    test = _prepare(config, prepare, "test") if data.test else None
    for warning in vocabulary_warnings(config, task):
        log.warning("%s", warning)
    inputs = Inputs(config, task, train_rows, evaluation, test)
    if "labels" in learned and train_rows is not None and "tags_words" not in config.task.can:
        for sentence in odd_labels(_class_counts(learned["labels"], train_rows)):
            log.warning(sentence)
    for sentence in _row_warnings(inputs):
        log.warning(sentence)
    if problems := steps_problems(config, num_steps=num_steps_of(inputs)):
        raise UserError(*problems)
    return inputs


def evaluation_rows(config: Config, task: Method) -> Prepared:
    """The prepared evaluation rows of a run's configuration. Raises UserError where there are none."""
    prepare = Preparer(task)
    if config.data.eval:
        return _prepare(config, prepare, "eval")
    if not config.data.eval_ratio:
        raise UserError("the run has no evaluation rows (data.eval); name some with --data.")
    held = held_out(config, task)
    return _prepare(config, prepare, "eval", keep=lambda source, row: row in held[source])


def _prepare(
    config: Config, prepare: Preparer, name: str, *, keep: Callable[[int, int], bool] | None = None
) -> Prepared:
    """One part of the data: train, eval or test; with `keep`, a part of the training sources."""
    data = config.data
    split = f"{data.eval_ratio}/{data.stratify}/{config.seed}" if keep else "whole"
    return prepare_sources(
        data.train if keep else getattr(data, name),
        prepare,
        name=name,
        key=f"{prepare.key()}/{split}",
        roles=prepare.task.settings.roles,
        data=data,
        in_tokens=prepare.task.modality.in_tokens,
        keep=keep,
    )


@dataclass
class Preparer:
    """`task.prepare`, as worker processes can take it along."""

    task: Method
    labelled: bool = True

    def __call__(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """Samples of rows of one source."""
        return prepare_rows(self.task, rows, labelled=self.labelled)

    def key(self) -> str:
        """Everything that prepared samples depend on besides the rows."""
        settings, own, processor = self.task.settings, self.task.own, processor_key(self.task.processor)
        key = f"{__version__}/{settings.model_dump_json()}/{processor}/{file_hash(settings, section='task')}"
        if self.task.says("prepare"):
            key += f"/{own.model_dump_json()}/{file_hash(own, section='method')}"
        return key

    def __reduce__(self) -> tuple[Any, ...]:
        """By the settings, since a worker process finds no class of a file that it has not run."""
        own, settings = self.task.own.model_dump(), self.task.settings.model_dump()
        return _preparer, (own, settings, self.task.processor, self.labelled)


def _preparer(own: dict[str, Any], settings: dict[str, Any], processor: Any, labelled: bool) -> Preparer:
    method, task = TypeAdapter(MethodField).validate_python(own), TypeAdapter(TaskField).validate_python(settings)
    return Preparer(build_method(method, task, processor), labelled)


def held_out(config: Config, task: Task) -> list[set[int]]:
    """The rows of each training source that are evaluated on instead."""
    return split_rows(
        config.data.train,
        data=config.data,
        roles=task.settings.roles,
        seed=config.seed,
        is_used=lambda row: not left_out(task.settings, row),
    )


def _class_counts(labels: Sequence[str], prepared: Prepared) -> dict[str, int]:
    """Rows of each class; none where classes are of words."""
    numbers: Counter[int] = Counter()
    for value in prepared.labels:
        numbers.update(value if isinstance(value, list) else [value])
    return {labels[number]: count for number, count in numbers.items()}


def _row_warnings(inputs: Inputs) -> list[str]:
    """What all prepared rows show that one alone does not."""
    found = []
    for setting, part in (("data.train", inputs.train), ("data.eval", inputs.evaluation), ("data.test", inputs.test)):
        if part is not None:
            blank, lost = sum(report.blank for report in part.reports), sum(report.lost for report in part.reports)
            found += row_warnings(setting, contradicting(part.row_hashes), blank=blank, lost=lost)
        if part is not None and part is not inputs.train and inputs.train is not None:
            is_held = part is inputs.evaluation and splits(inputs.config)
            number = shared(inputs.train.row_hashes, part.row_hashes)
            found += shared_warning(setting, number, len(part), held_out=is_held)
    return found


def global_order(inputs: Inputs) -> GlobalOrder | None:
    """The order of prepared training rows; None for a stream."""
    if inputs.train is None:
        return None
    config = inputs.config
    return GlobalOrder(
        _targets(inputs),
        inputs.train.sources,
        batch=config.batch,
        shuffle=config.data.shuffle,
        seed=config.seed,
        lengths=inputs.train.costs if config.data.group_by_length else None,
    )


def _targets(inputs: Inputs) -> np.ndarray:
    """(rows,) int: targets of each training row, of the first term of the loss."""
    assert inputs.train is not None
    counts = inputs.train.counts.get(next(iter(inputs.task.terms)))
    if counts is None and inputs.config.batch.unit == "targets":
        raise UserError(
            f"batch.unit = targets needs to know each row's targets before, and task = {inputs.config.task.name} knows "
            "them in its batches only; set batch.unit: samples."
        )
    return np.zeros(len(inputs.train), dtype=np.int64) if counts is None else counts


def num_steps_of(inputs: Inputs) -> int:
    """Optimizer steps of the run."""
    if inputs.config.train.max_steps:
        return inputs.config.train.max_steps
    order = global_order(inputs)
    assert order is not None, "a stream has max_steps"
    return order.num_steps(inputs.config.train.epochs)


def splits(config: Config) -> bool:
    """Whether evaluation rows are a share of the training rows."""
    return bool(config.data.eval_ratio and not config.data.eval)


def _training_rows(config: Config, task: Task) -> Iterator[dict[str, Any]]:
    for index, source in enumerate(config.data.train):
        for row in read_rows(source, roles=task.settings.roles, setting=f"data.train[{index}]"):
            if not left_out(task.settings, row):
                yield row
