"""What a practitioner would say of the run, as far as a draw of its rows tells."""

from __future__ import annotations

from collections import Counter

from ftscale.checks.sample import DataSample, Part
from ftscale.checks.schedule import training_rows
from ftscale.precheck.advice import (
    batch_warnings,
    class_warnings,
    cut_warnings,
    evaluation_warnings,
    held_out_warnings,
    rate_warnings,
)


def advice(sample: DataSample, *, num_steps: int | None) -> list[str]:
    """Sentences about rates, batches, held-out rows, classes, evaluations and cut rows. num_steps None = not known."""
    config, evaluation = sample.config, sample.evaluation
    found = [*rate_warnings(config), *batch_warnings(config, rows=round(training_rows(config, sample) or 0))]
    held_out = "data.eval" if config.data.eval else "data.eval_ratio"
    for setting, part in (("data.train", sample.train), (held_out, evaluation), ("data.test", sample.test)):
        if part is None:
            continue
        if sample.task.modality.in_tokens:
            found += cut_warnings(setting, cut=sum(item.truncated for item in part.kept), rows=len(part.kept))
        if part is not sample.train and part.whole:
            rows = sum(report.used for report in part.reports)
            found += held_out_warnings(setting, rows=rows, metric=config.evaluation.metric or sample.task.best_metric)
    if sample.train.whole and "tags_words" not in config.task.can:
        known = evaluation is not None and evaluation.whole
        found += class_warnings(_counts(sample, sample.train), _counts(sample, evaluation) if known else None)
    if evaluation is not None and evaluation.num_rows and num_steps:
        found += evaluation_warnings(config, rows=evaluation.num_rows, num_steps=num_steps)
    return found


def _counts(sample: DataSample, part: Part | None) -> dict[str, int]:
    """Rows of each class, those without a row too; empty where the task has no classes."""
    numbers: Counter[int] = Counter()
    for item in part.kept if part is not None else ():
        numbers.update(sample.task.classes(item))
    labels = getattr(sample.config.task, "labels", None) or ()
    return {label: numbers[number] for number, label in enumerate(labels)}
