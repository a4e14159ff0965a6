"""What a run's data looked like, for its report: data_report.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.data.prepare import Prepared
from ftscale.data.sources import read_rows
from ftscale.methods.base import Method
from ftscale.run.prepared_data import Inputs, Preparer
from ftscale.tasks.base import Task

BINS = 30
"""Of the histogram of lengths."""
MOST_CLASSES = 200
SHOWN_ROWS = 6
READ_ROWS = 32
"""Of the training rows, among which those that are shown are looked for."""
MOST_CHARACTERS = 4000
"""Of a row that is shown."""


def data_report(inputs: Inputs) -> dict[str, Any]:
    """Of each part of prepared data what became of its rows, their lengths and classes; and a few training rows.

    Those of a stream are not counted beforehand: of them a few are shown all the same.
    """
    parts = {"train": inputs.train, "eval": inputs.evaluation, "test": inputs.test}
    return {
        "parts": {name: _part(part, inputs.task) for name, part in parts.items() if part is not None},
        "shown": list(islice(_shown(inputs.config, inputs.task), SHOWN_ROWS)),
    }


def _part(part: Prepared, task: Task) -> dict[str, Any]:
    counts, edges = np.histogram(part.costs, bins=min(BINS, int(np.ptp(part.costs)) + 1))
    return {
        "sources": [asdict(report) for report in part.reports],
        "samples": len(part),
        "in_tokens": task.modality.in_tokens,
        "lengths": {"edges": edges.tolist(), "counts": counts.tolist()},
        "classes": _classes(part, task),
        "equal_inputs": len(part.inputs) - len(np.unique(part.inputs)),
        "contradicting": part.contradicting,
        "unknown_tokens": _unknown_tokens(part, task),
    }


def _classes(part: Prepared, task: Task) -> dict[str, int]:
    """Targets of each class, the largest first; none for a task without classes, or with very many."""
    names = getattr(task.settings, "labels", None)
    if not names or len(names) > MOST_CLASSES:
        return {}
    counts = part.label_counts()
    found = {str(name): int(counts.get(number, 0)) for number, name in enumerate(names)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _unknown_tokens(part: Prepared, task: Task) -> float | None:
    """The share of tokens that stand for what the tokenizer does not know; None where there is no such token."""
    unknown = getattr(task.processor, "unk_token_id", None)
    if unknown is None or "input_ids" not in part.dataset.column_names:
        return None
    import pyarrow.compute as pc

    ids = pc.list_flatten(part.dataset.data.column("input_ids"))
    return (pc.sum(pc.equal(ids, unknown)).as_py() or 0) / max(len(ids), 1)


def _shown(config: Config, task: Method) -> Iterator[list[tuple[str, bool]]]:
    """The first training rows that are kept, as the model reads them, in pieces that are targets or not."""
    source = config.data.train[0]
    try:
        rows = list(islice(read_rows(source, roles=task.settings.roles, setting="data.train[0]"), READ_ROWS))
        samples = Preparer(task)(rows)
    except UserError:  # of a row that is dropped as training reads it, or of a file that is not there any more
        return
    seen = set()
    for place, sample in enumerate(samples):
        row = place if task.by_row or sample.rows is None else sample.rows[0]
        if not sample.drop and row not in seen:
            seen.add(row)
            yield [(text[:MOST_CHARACTERS], is_target) for text, is_target in task.show(rows[row], sample)]
