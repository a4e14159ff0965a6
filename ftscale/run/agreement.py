"""What every process derived from the data by itself, compared before a first step is taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.prepare import Prepared, processor_key
from ftscale.data.sources import source_files
from ftscale.run.prepared_data import Inputs, num_steps_of

SHOWN_CHARACTERS = 120


def check_agreement(own: Mapping[str, str], gather: Callable[[Any], list[Any]]) -> None:
    """Raise UserError, on every rank alike, where one has another value than rank 0 under some name. Collective.

    `gather`: every rank's value on every rank.
    """
    first, *others = gather(dict(own))
    problems = [
        f"{what}: rank {rank} has {_short(other[what])}, rank 0 has {_short(first[what])}; every process must read the "
        "same files with the same libraries: look at the data's paths on each machine."
        for rank, other in enumerate(others, 1)
        for what in first
        if other[what] != first[what]
    ]
    if problems:
        raise UserError(*problems)


def derived(inputs: Inputs) -> dict[str, str]:
    """Return, by name and each as text, what task and method are made of, the prepared rows and how many steps."""
    sections = {"task": inputs.config.task, "method": inputs.config.method}
    train = inputs.train
    return {
        **{
            f"{section}.{name}": json.dumps(value)
            for section, settings in sections.items()
            for name, value in settings.model_dump(mode="json").items()
        },
        "the tokenizer or image processor": processor_key(inputs.task.processor),
        "data.train": json.dumps(list(map(_files, inputs.config.data.train))) if train is None else rows_text(train),
        "data.eval": rows_text(inputs.evaluation),
        "data.test": rows_text(inputs.test),
        "the number of steps": str(num_steps_of(inputs)),
    }


def rows_text(prepared: Prepared | None) -> str:
    """Prepared rows in a few words that differ where the rows do."""
    if prepared is None:
        return "none"
    targets = sum(report.targets for report in prepared.reports)
    return f"{len(prepared)} rows with {targets} targets (content {prepared.samples_hash})"


def _files(source: SourceConfig) -> list[tuple[str, int]]:
    """Names and sizes of a stream's files, whose rows nobody has read yet."""
    return [(path.name, path.stat().st_size) for path in source_files(source)]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
