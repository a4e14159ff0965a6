"""Data sets of the Hugging Face hub, streamed by `datasets`; the only format that needs the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ftscale.data.formats.base import DataFile, Place, Record


def columns(file: DataFile) -> None:
    """None: a streamed data set may not know its columns before its first row."""


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a row, as a dict; class numbers become class names, images stay encoded.

    A place is `{"record": n}`; `datasets` skips the n rows.
    """
    start = place["record"] if place else 0
    rows = _load(file)
    named = {name: names for name, feature in (rows.features or {}).items() if (names := _class_names(feature))}
    for number, row in enumerate(rows.skip(start), start + 1):
        for name, names in named.items():
            row[name] = _with_names(row[name], names)
        yield row, f"{file.path} row {number}", {"record": number}


def _load(file: DataFile) -> Any:
    import datasets

    source = file.source
    try:
        rows = datasets.load_dataset(source.path, name=source.name, split=source.split or "train", streaming=True)
    except (FileNotFoundError, ValueError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise file.error(
            f"is neither a file here nor a data set that could be loaded from the hub ({error}); correct "
            f"{file.setting}.path, name or split, or copy the files here where there is no internet."
        ) from error
    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _class_names(feature: Any) -> list[str] | None:
    import datasets

    inner = feature.feature if isinstance(feature, datasets.List) else feature
    return inner.names if isinstance(inner, datasets.ClassLabel) else None


def _with_names(value: Any, names: list[str]) -> Any:
    """-1 is the hub's "no label"."""
    if isinstance(value, list):
        return [_with_names(item, names) for item in value]
    if not isinstance(value, int):
        return value
    return None if value < 0 else names[value]
