"""Parquet: only the wanted columns are read, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow
import pyarrow.parquet

from ftscale.base.errors import UserError
from ftscale.data.formats.base import MOST_RATIO, MOST_UNPACKED, DataFile, Place, Record, open_bytes

ROWS_AT_ONCE = 4096
FEW_ROWS = 16
"""Read at once where few values, each written once, may stand in very many rows."""
DENSE_RATIO = 20
"""Times its packed size from which on a column is read so: text comes to 2 to 5."""
LARGE_ROW = 2**16
"""Bytes from which on the rows of a file are counted against its size."""
MANY_ROWS = 10**7


def columns(file: DataFile) -> tuple[str, ...]:
    """Names of the top-level columns."""
    with _open(file) as table:
        return tuple(table.schema_arrow.names)


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a row, as Python values. A place is `{"group": row group, "record": rows taken of it}`."""
    first_group, start = (place["group"], place["record"]) if place else (0, 0)
    with _open(file) as table:
        _check_claims(file, table)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        for group in range(first_group, len(sizes)):
            before = sum(sizes[:group])
            skip = start if group == first_group else 0
            for record, values in enumerate(_group_rows(file, table, group, wanted, skip), skip + 1):
                yield values, f"{file.path} row {before + record}", {"group": group, "record": record}


def _check_claims(file: DataFile, table: pyarrow.parquet.ParquetFile) -> None:
    """Raise UserError for a small file that unpacks to very much, by what it says of itself."""
    groups = [table.metadata.row_group(group) for group in range(table.num_row_groups)]
    for group in groups:
        for column in map(group.column, range(group.num_columns)):
            if column.total_uncompressed_size > max(MOST_UNPACKED, MOST_RATIO * column.total_compressed_size):
                raise _bomb(file, f"{column.total_uncompressed_size} bytes of column {column.path_in_schema!r}")
    packed = sum(group.column(number).total_compressed_size for group in groups for number in range(group.num_columns))
    if table.metadata.num_rows > max(MANY_ROWS, MOST_RATIO * packed):
        raise _bomb(file, f"{table.metadata.num_rows} rows")


def _bomb(file: DataFile, what: str) -> UserError:
    return file.error(
        f"unpacks to {what}, more than {MOST_RATIO} times its size; if that is right, write it as JSON lines."
    )


def _rows_at_once(table: pyarrow.parquet.ParquetFile, group: int) -> int:
    """Few where a column is packed so well that each of its values may be in very many rows."""
    row_group = table.metadata.row_group(group)
    for column in map(row_group.column, range(row_group.num_columns)):
        large = column.total_uncompressed_size > LARGE_ROW
        if large and column.total_uncompressed_size > DENSE_RATIO * column.total_compressed_size:
            return FEW_ROWS
    return ROWS_AT_ONCE


def _group_rows(
    file: DataFile, table: pyarrow.parquet.ParquetFile, group: int, wanted: Sequence[int], skip: int
) -> Iterator[tuple[object, ...]]:
    names = table.schema_arrow.names
    asked: list[str] | None = list(dict.fromkeys(names[column] for column in wanted))
    read = [column for name in asked or () for column, other in enumerate(names) if other == name]
    if any("." in names[column] for column in wanted):  # pyarrow takes `a.b` for the field b of a struct a too
        asked, read = None, list(range(len(names)))
    row_group = table.metadata.row_group(group)
    most = max(
        MOST_UNPACKED,
        MOST_RATIO * sum(row_group.column(number).total_compressed_size for number in range(row_group.num_columns)),
    )
    large = 0
    for batch in table.iter_batches(_rows_at_once(table, group), row_groups=[group], columns=asked):
        large += batch.nbytes if batch.nbytes > LARGE_ROW * batch.num_rows else 0
        if large > most:
            raise _bomb(file, f"more than {most} bytes of large rows")
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
