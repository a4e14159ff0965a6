"""Parquet: only the wanted columns are read, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow
import pyarrow.parquet

from ftscale.data.formats.base import DataFile, Place, Record, open_bytes

ROWS_AT_ONCE = 4096


def columns(file: DataFile) -> tuple[str, ...]:
    """Names of the top-level columns."""
    with _open(file) as table:
        return tuple(table.schema_arrow.names)


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a row, as Python values. A place is `{"group": row group, "record": rows taken of it}`."""
    first_group, start = (place["group"], place["record"]) if place else (0, 0)
    with _open(file) as table:
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        for group in range(first_group, len(sizes)):
            before = sum(sizes[:group])
            skip = start if group == first_group else 0
            for record, values in enumerate(_group_rows(table, group, wanted, skip), skip + 1):
                yield values, f"{file.path} row {before + record}", {"group": group, "record": record}


def _group_rows(
    table: pyarrow.parquet.ParquetFile, group: int, wanted: Sequence[int], skip: int
) -> Iterator[tuple[object, ...]]:
    names = table.schema_arrow.names
    asked: list[str] | None = list(dict.fromkeys(names[column] for column in wanted))
    read = [column for name in asked or () for column, other in enumerate(names) if other == name]
    if any("." in names[column] for column in wanted):  # pyarrow takes `a.b` for the field b of a struct a too
        asked, read = None, list(range(len(names)))
    for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=asked):
        kept = batch.slice(skip)
        skip = max(0, skip - batch.num_rows)
        yield from zip(*(kept.column(read.index(column)).to_pylist() for column in wanted), strict=True)


@contextmanager
def _open(file: DataFile) -> Iterator[pyarrow.parquet.ParquetFile]:
    with open_bytes(file) as stream:
        try:
            with pyarrow.parquet.ParquetFile(stream) as table:
                yield table
        except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:  # ValueError: names, texts, dates
            if isinstance(error, OSError) and error.errno is not None:  # real I/O errors have a number
                raise
            raise file.error(f"is damaged or not Parquet ({error}); copy or download it again.") from error
