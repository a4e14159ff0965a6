"""Everything that is known before a process group exists: the checked configuration and its prepared rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftscale.config import Config
from ftscale.config.schema import CausalLMSettings
from ftscale.data.census import contradicting, odd_labels, row_warnings, shared, shared_warning
from ftscale.data.order import GlobalOrder
from ftscale.data.prepare import Prepared, prepare_sources, processor_key, split_rows
from ftscale.data.sources import read_rows
from ftscale.errors import UserError
from ftscale.logs import log
from ftscale.precheck import check_config, machine_problems, metric_problems, steps_problems
from ftscale.precheck.fit import in_model_order
from ftscale.precheck.vocabulary import vocabulary_warnings
from ftscale.tasks import build_task
from ftscale.tasks.base import Task
from ftscale.tasks.rows import facts_of, left_out, prepare_rows
from ftscale.version import __version__


@dataclass
class Inputs:
    """Everything known before a process group exists."""

    config: Config
    """With what the training rows told filled in, e.g. labels."""
    task: Task
    processor: Any
    train: Prepared | None
    """None where training rows are streamed."""
    evaluation: Prepared | None
    test: Prepared | None


def prepare_inputs(config: Config) -> Inputs:
    """Check the configuration and prepare its data: no process group, no weights."""
    if problems := machine_problems(config):
        raise UserError(*problems)
    processor = check_config(config)
    task, data = build_task(config.task), config.data
    held = held_out(config, task) if splits(config) else None
    learned = in_model_order(config, task, task.fit(_training_rows(config, task)))
    config = config.model_copy(update={"task": config.task.model_copy(update=learned)})
    task = build_task(config.task)
    if problems := metric_problems(config, task):
        raise UserError(*problems)
    if isinstance(config.task, CausalLMSettings) and config.task.chat_template is not None:
        processor.chat_template = config.task.chat_template  # it is saved with the model that learned it
    prepare = Preparer(task, processor)
    train_rows: Prepared | None
    evaluation: Prepared | None
    if held is not None:
        train_rows = _prepare(config, prepare, "train", keep=lambda source, row: row not in held[source])
        evaluation = _prepare(config, prepare, "eval", keep=lambda source, row: row in held[source])
    else:
        train_rows = None if data.streaming else _prepare(config, prepare, "train")
        evaluation = _prepare(config, prepare, "eval") if data.eval else None
    test = _prepare(config, prepare, "test") if data.test else None
    for warning in vocabulary_warnings(config, task, processor):
        log.warning("%s", warning)
    inputs = Inputs(config, task, processor, train_rows, evaluation, test)
    if "labels" in learned and train_rows is not None:
        for sentence in odd_labels(_class_counts(task, train_rows)):
            log.warning(sentence)
    for sentence in _row_warnings(inputs):
        log.warning(sentence)
    if problems := steps_problems(config, num_steps=num_steps_of(inputs)):
        raise UserError(*problems)
    return inputs


def evaluation_rows(config: Config, task: Task, processor: Any) -> Prepared:
    """The prepared evaluation rows of a run's configuration. Raises UserError where there are none."""
    prepare = Preparer(task, processor)
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
        roles=prepare.task.columns,
        data=data,
        keep=keep,
    )


@dataclass
class Preparer:
    """`task.prepare` with its processor, as worker processes can take it along."""

    task: Any
    processor: Any
    labelled: bool = True

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Samples of rows of one source; `where` says where each was read."""
        samples = prepare_rows(self.task, rows, self.processor, labelled=self.labelled)
        if joins(self.task):
            span = f"{rows[0]['_where']} to {rows[-1]['_where']}"
            return [{**sample, "where": span} for sample in samples]
        return [
            {**sample, "where": row["_where"], **facts_of(self.task, row, sample)}
            for sample, row in zip(samples, rows, strict=True)
        ]

    def key(self) -> str:
        """Everything that prepared samples depend on besides the rows."""
        return f"{__version__}/{self.task.settings.model_dump_json()}/{processor_key(self.processor)}"


def held_out(config: Config, task: Task) -> list[set[int]]:
    """The rows of each training source that are evaluated on instead."""
    return split_rows(
        config.data.train,
        data=config.data,
        roles=task.columns,
        seed=config.seed,
        is_used=lambda row: not left_out(task, row),
    )


def _class_counts(task: Any, prepared: Prepared) -> dict[str, int]:
    """Rows of each class; none for tags."""
    if "tags" in prepared.dataset.column_names:
        return {}
    numbers: Counter[int] = Counter()
    for value in prepared.dataset["labels"]:
        numbers.update(value if isinstance(value, list) else [value])
    return {task.labels[number]: count for number, count in numbers.items()}


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


def joins(task: Any) -> bool:
    """Whether the task makes samples from several rows together, so that they are not one a row."""
    return task.settings.name == "causal_lm" and task.settings.join_texts


def global_order(inputs: Inputs) -> GlobalOrder | None:
    """The order of prepared training rows; None for a stream."""
    if inputs.train is None:
        return None
    config = inputs.config
    return GlobalOrder(
        np.asarray(inputs.train.dataset["targets"]),
        inputs.train.sources,
        batch=config.batch,
        shuffle=config.data.shuffle,
        seed=config.seed,
        lengths=np.asarray(inputs.train.dataset["length"]) if config.data.group_by_length else None,
    )


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
        for row in read_rows(source, roles=task.columns, setting=f"data.train[{index}]"):
            if not left_out(task, row):
                yield row
