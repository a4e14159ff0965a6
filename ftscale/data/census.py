"""What a look over all rows shows: equal rows, equal inputs with other labels, rows on both sides of a split."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
import xxhash

from ftscale.data.missing import LIKELY

Row = dict[str, Any]


def content_of(row: Row, *, inputs: Collection[str]) -> list[int]:
    """Two 64-bit hashes of a row: of `inputs`, the columns that the model reads, and of all its columns."""
    columns = {name: value for name, value in row.items() if not name.startswith("_")}
    return [_hash({name: value for name, value in columns.items() if name in inputs}), _hash(columns)]


def repeated(contents: np.ndarray) -> int:
    """Rows that repeat another one exactly. contents: (rows, 2) int64, see `content_of`."""
    return len(contents) - len(np.unique(contents[:, 1]))


def contradicting(contents: np.ndarray) -> int:
    """Rows whose inputs another row has with another outcome. contents: (rows, 2) int64."""
    if not len(contents):
        return 0
    inputs, outcomes = contents[np.lexsort((contents[:, 1], contents[:, 0]))].T
    starts = np.flatnonzero(np.append(True, inputs[1:] != inputs[:-1]))  # of the runs of equal inputs
    stops = np.append(starts[1:], len(inputs))
    return int((stops - starts)[outcomes[starts] != outcomes[stops - 1]].sum())


def shared(first: np.ndarray, second: np.ndarray) -> int:
    """Rows of the second whose inputs are those of a row of the first. Both: (rows,) int64, sorted hashes of inputs."""
    if not len(first):
        return 0
    places = np.minimum(np.searchsorted(first, second), len(first) - 1)
    return int((first[places] == second).sum())


def odd_labels(counts: dict[str, int]) -> list[str]:
    """Sentences about classes that are likely mistakes: a missing value's name, and names that differ in case alone."""
    found = [
        f"the class {label!r} ({count} rows) is what programs write for a missing value; if it is one, set "
        f"missing_values: [{label}] of its source, and drop: [missing] to leave these rows out."
        for label, count in counts.items()
        if label.strip().lower() in LIKELY
    ]
    alike: dict[str, list[str]] = {}
    for label in counts:
        alike.setdefault(" ".join(label.casefold().split()), []).append(label)
    found += [
        f"the classes {' and '.join(f'{label!r} ({counts[label]} rows)' for label in labels)} differ in case or white "
        "space alone; write them alike in the files if they are one."
        for labels in alike.values()
        if len(labels) > 1
    ]
    return found


def row_warnings(setting: str, contradicting: int, *, blank: int, lost: int) -> list[str]:
    """Sentences about the rows of a part of the data. `blank`: rows with a blank text; `lost`: words without token."""
    found = []
    if blank:
        found.append(
            f"{setting}: {blank} rows have a text of white space alone, from which nothing can be learnt; set drop: "
            "[blank] of the source to leave them out."
        )
    if lost:
        found.append(
            f"{setting}: {lost} words give no token, so that the model never sees them and their tags count as O; take "
            "them out of the files, or use a tokenizer that knows their characters."
        )
    if contradicting:
        found.append(
            f"{setting}: {contradicting} rows have the input of another row and another label, so that no model can be "
            "right in all of them; correct them, or keep one of each."
        )
    return found


def shared_warning(setting: str, number: int, total: int, *, held_out: bool) -> list[str]:
    """A sentence about rows that are scored and trained on. `held_out`: they are of the training files."""
    if not number:
        return []
    fix = "take repeated rows out of data.train" if held_out else "take them out of one of the two"
    return [
        f"{setting}: {number} of {total} rows have the input of a row of data.train too, so that their scores say "
        f"little about new data; {fix}."
    ]


def _hash(columns: Row) -> int:
    return xxhash.xxh3_64_intdigest(_in_letters(columns).encode()) - 2**63  # as a signed number


def _as_text(value: Any) -> str:
    return xxhash.xxh3_64_hexdigest(value) if isinstance(value, bytes) else repr(value)


_in_letters = json.JSONEncoder(sort_keys=True, default=_as_text).encode
"""JSON, by one encoder for all rows: making one takes as long as writing a short row."""
