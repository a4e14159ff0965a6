"""Everything that is known before a process group exists: the checked configuration and its prepared rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.config import Config
from ftscale.config.own_task import file_hash
from ftscale.config.schema import MethodField, TaskField
from ftscale.data.cache import cache_folder
from ftscale.data.census import odd_labels, row_warnings, shared, shared_warning
from ftscale.data.formats.copies import copies_in
from ftscale.data.order import GlobalOrder
from ftscale.data.prepare import Prepared, prepare_sources, processor_key, source_fingerprints, split_rows
from ftscale.data.sample import Sample
from ftscale.methods import build_method
from ftscale.methods.base import Method
from ftscale.precheck import check_config, machine_problems, metric_problems, steps_problems
from ftscale.precheck.advice import (
    batch_warnings,
    class_warnings,
    cut_warnings,
    evaluation_warnings,
    held_out_warnings,
    rate_warnings,
)
from ftscale.precheck.fit import fitted
from ftscale.precheck.vocabulary import vocabulary_warnings
from ftscale.run.told import told_by_rows
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

    @cached_property
    def order(self) -> GlobalOrder | None:
        """The order of prepared training rows, which remembers what it was asked; None for a stream."""
        return None if self.train is None else _order_of(self.config, self.task, self.train)


def prepare_inputs(config: Config) -> Inputs:
    """Check the configuration and prepare its data: no process group, no weights."""
    if problems := machine_problems(config):
        raise UserError(*problems)
    processor = check_config(config)
    with copies_in(None if config.data.streaming else cache_folder(config.data) / "remote"):
        return _prepared_inputs(config, processor)


def _prepared_inputs(config: Config, processor: Any) -> Inputs:
    task, data = build_method(config.method, config.task), config.data
    is_held = _is_held_out(config, task)
    roles = task.settings.roles
    fingerprints = [] if data.streaming else source_fingerprints(data.train, name="train", roles=roles)
    config, task, learned = fitted(config, task, processor, told_by_rows(config, task, fingerprints))
    if problems := metric_problems(config, task):
        raise UserError(*problems)
    preparer = Preparer(task)
    prepare = partial(_prepare, config, preparer, preparer.key())
    train_rows: Prepared | None
    evaluation: Prepared | None
    if splits(config):
        kept = lambda source, row: not is_held(source, row)  # noqa: E731
        train_rows = prepare("train", fingerprints=fingerprints, keep=kept)
        evaluation = prepare("eval", fingerprints=fingerprints, keep=is_held)
    else:
        train_rows = None if data.streaming else prepare("train", fingerprints=fingerprints)
        evaluation = prepare("eval") if data.eval else None
    test = prepare("test") if data.test else None
    for warning in vocabulary_warnings(config, task):
        log.warning("%s", warning)
    inputs = Inputs(config, task, train_rows, evaluation, test)
    if "labels" in learned and train_rows is not None and "tags_words" not in config.task.can:
        for sentence in odd_labels(_class_counts(learned["labels"], train_rows)):
            log.warning(sentence)
    for sentence in [*_row_warnings(inputs), *_advice(inputs)]:
        log.warning("%s", sentence)
    if problems := steps_problems(config, num_steps=num_steps_of(inputs)):
        raise UserError(*problems)
    return inputs


def evaluation_rows(config: Config, task: Method) -> Prepared:
    """The prepared evaluation rows of a run's configuration. Raises UserError where there are none."""
    preparer = Preparer(task)
    prepare = partial(_prepare, config, preparer, preparer.key())
    if config.data.eval:
        return prepare("eval")
    if not config.data.eval_ratio:
        raise UserError("the run has no evaluation rows (data.eval); name some with --data.")
    return prepare("eval", keep=_is_held_out(config, task))


def _is_held_out(config: Config, task: Task) -> Callable[[int, int], bool]:
    """Whether a row of a training source is evaluated on instead; nobody asks where all rows are prepared."""
    held = cache(lambda: held_out(config, task))
    return lambda source, row: row in held()[source]


def _prepare(
    config: Config,
    prepare: Preparer,
    key: str,
    name: str,
    *,
    keep: Callable[[int, int], bool] | None = None,
    fingerprints: Sequence[str] | None = None,
) -> Prepared:
    """One part of the data: train, eval or test; with `keep`, a part of the training sources.

    `key`: that of `prepare`.
    """
    data, roles = config.data, prepare.task.settings.roles
    if name != "train":
        prepare = replace(prepare, groups=config.evaluation.groups)
        roles = config.evaluation.with_groups(roles)
        key += f"/{list(prepare.groups)}" if prepare.groups else ""
    split = f"{data.eval_ratio}/{data.stratify}/{config.seed}" if keep else "whole"
    return prepare_sources(
        data.train if keep else getattr(data, name),
        prepare,
        name=name,
        key=f"{key}/{split}",
        roles=roles,
        data=data,
        in_tokens=prepare.task.modality.in_tokens,
        keep=keep,
        fingerprints=fingerprints,
    )


@dataclass
class Preparer:
    """`task.prepare`, as worker processes can take it along."""

    task: Method
    labelled: bool = True
    groups: Sequence[str] = ()

    def __call__(self, rows: list[dict[str, Any]]) -> list[Sample]:
        """Samples of rows of one source."""
        return prepare_rows(self.task, rows, labelled=self.labelled, groups=self.groups)

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
        return _preparer, (own, settings, self.task.processor, self.labelled, self.groups)


def _preparer(
    own: dict[str, Any], settings: dict[str, Any], processor: Any, labelled: bool, groups: Sequence[str]
) -> Preparer:
    method, task = TypeAdapter(MethodField).validate_python(own), TypeAdapter(TaskField).validate_python(settings)
    return Preparer(build_method(method, task, processor), labelled, groups)


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
    return {labels[number]: count for number, count in prepared.label_counts().items()}


def _row_warnings(inputs: Inputs) -> list[str]:
    """What all prepared rows show that one alone does not."""
    found = []
    for setting, part in (("data.train", inputs.train), ("data.eval", inputs.evaluation), ("data.test", inputs.test)):
        if part is not None:
            blank, lost = sum(report.blank for report in part.reports), sum(report.lost for report in part.reports)
            found += row_warnings(setting, part.contradicting, blank=blank, lost=lost)
        if part is not None and part is not inputs.train and inputs.train is not None:
            is_held = part is inputs.evaluation and splits(inputs.config)
            number = shared(inputs.train.inputs, part.inputs)
            found += shared_warning(setting, number, len(part), held_out=is_held)
    return found


def _advice(inputs: Inputs) -> list[str]:
    """What a practitioner would say of the run."""
    config, train, evaluation = inputs.config, inputs.train, inputs.evaluation
    found = [*rate_warnings(config), *batch_warnings(config, rows=0 if train is None else len(train))]
    held_out = "data.eval_ratio" if splits(config) else "data.eval"
    for setting, part in (("data.train", train), (held_out, evaluation), ("data.test", inputs.test)):
        if part is not None:
            found += cut_warnings(setting, cut=sum(report.truncated for report in part.reports), rows=len(part))
        if part is not None and part is not train:
            rows = sum(report.used for report in part.reports)
            found += held_out_warnings(setting, rows=rows, metric=config.evaluation.metric or inputs.task.best_metric)
    labels = (getattr(config.task, "labels", None) or ()) if "labels" in config.task.learned else ()
    if train is not None and labels and "tags_words" not in config.task.can:
        none = dict.fromkeys(labels, 0)
        counts = [none | _class_counts(labels, part) for part in (train, evaluation) if part is not None]
        found += class_warnings(counts[0], counts[1] if evaluation is not None else None)
    if evaluation is not None:
        found += evaluation_warnings(config, rows=len(evaluation), num_steps=num_steps_of(inputs))
    return found


def _order_of(config: Config, task: Method, train: Prepared) -> GlobalOrder:
    return GlobalOrder(
        _targets(config, task, train),
        train.sources,
        batch=config.batch,
        shuffle=config.data.shuffle,
        seed=config.seed,
        lengths=train.costs if config.data.group_by_length else None,
    )


def _targets(config: Config, task: Method, train: Prepared) -> np.ndarray:
    """(rows,) int: targets of each training row, of the first term of the loss."""
    counts = train.counts.get(next(iter(task.terms)))
    if counts is None and config.batch.unit == "targets":
        raise UserError(
            f"batch.unit = targets needs to know each row's targets before, and task = {config.task.name} knows them "
            "in its batches only; set batch.unit: samples."
        )
    return np.broadcast_to(0, len(train)) if counts is None else counts


def num_steps_of(inputs: Inputs) -> int:
    """Optimizer steps of the run."""
    if inputs.config.train.max_steps:
        return inputs.config.train.max_steps
    assert inputs.order is not None, "a stream has max_steps"
    return inputs.order.num_steps(inputs.config.train.epochs)


def splits(config: Config) -> bool:
    """Whether evaluation rows are a share of the training rows."""
    return bool(config.data.eval_ratio and not config.data.eval)
