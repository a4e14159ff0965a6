"""Parquet: only the wanted columns are read, row group by row group."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from ftscale.base.errors import UserError
from ftscale.data.formats.base import DataFile, Place, Record, open_bytes
from ftscale.data.formats.packed import MOST_RATIO, MOST_UNPACKED, LargeRows

ROWS_AT_ONCE = 32
"""Few, since a value that is written once may stand in every row."""
MANY_ROWS = 10**7


def columns(file: DataFile) -> tuple[str, ...]:
    """Names of the top-level columns."""
    with _open(file) as (table, _):
        return tuple(table.schema_arrow.names)


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a row, as Python values. A place is `{"group": row group, "record": rows taken of it}`."""
    first_group, start = (place["group"], place["record"]) if place else (0, 0)
    with _open(file) as (table, packed):
        _check_claims(file, table, packed)
        sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        for group in range(first_group, len(sizes)):
            before = sum(sizes[:group])
            skip = start if group == first_group else 0
            for record, values in enumerate(_group_rows(file, table, group, wanted, skip, packed), skip + 1):
                yield values, f"{file.path} row {before + record}", {"group": group, "record": record}


def _check_claims(file: DataFile, table: pyarrow.parquet.ParquetFile, packed: int) -> None:
    """Raise UserError for a small file, of `packed` bytes, that unpacks to very much by what it says of itself.

    Row groups are asked and not their columns: where a column's description is damaged, pyarrow 26 ends the process.
    """
    for group in map(table.metadata.row_group, range(table.num_row_groups)):
        if group.total_byte_size > max(MOST_UNPACKED, MOST_RATIO * packed):
            raise _bomb(file, f"{group.total_byte_size} bytes in a row group")
    if table.metadata.num_rows > max(MANY_ROWS, MOST_RATIO * packed):
        raise _bomb(file, f"{table.metadata.num_rows} rows")


def _bomb(file: DataFile, what: str) -> UserError:
    return file.error(
        f"unpacks to {what}, more than {MOST_RATIO} times its size; if that is right, write it as JSON lines."
    )


def _group_rows(
    file: DataFile, table: pyarrow.parquet.ParquetFile, group: int, wanted: Sequence[int], skip: int, packed: int
) -> Iterator[tuple[object, ...]]:
    names = table.schema_arrow.names
    asked: list[str] | None = list(dict.fromkeys(names[column] for column in wanted))
    read = [column for name in asked or () for column, other in enumerate(names) if other == name]
    if any("." in names[column] for column in wanted):  # pyarrow takes `a.b` for the field b of a struct a too
        asked, read = None, list(range(len(names)))
    large = LargeRows(size=packed)
    for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=asked):
        if large.are_too_many(sum(map(_bytes_of, batch.columns)), rows=batch.num_rows):
            raise _bomb(file, f"more than {large.most} bytes of large rows")
        kept = batch.slice(skip)
        skip = max(0, skip - batch.num_rows)
        yield from zip(*(kept.column(read.index(column)).to_pylist() for column in wanted), strict=True)


def _bytes_of(column: pyarrow.Array) -> int:
    """The size of a column's values as rows have them: a text that a dictionary holds once counts in each row."""
    types, kind = pyarrow.types, column.type
    if types.is_dictionary(kind) and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type)):
        lengths = pyarrow.compute.binary_length(column.dictionary)
        return pyarrow.compute.sum(lengths.take(column.indices)).as_py() or 0
    if types.is_struct(kind):
        return sum(map(_bytes_of, column.flatten()))
    if types.is_map(kind):
        return _bytes_of(column.keys) + _bytes_of(column.items)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _bytes_of(column.flatten())
    return column.nbytes


@contextmanager
def _open(file: DataFile) -> Iterator[tuple[pyarrow.parquet.ParquetFile, int]]:
    """The file, and how many bytes it has."""
    with open_bytes(file) as stream:
        packed = stream.seek(0, os.SEEK_END)
        try:
            with pyarrow.parquet.ParquetFile(stream) as table:
                yield table, packed
        except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:  # ValueError: names, texts, dates
            if isinstance(error, OSError) and error.errno is not None:  # real I/O errors have a number
                raise
            raise file.error(f"is damaged or not Parquet ({error}); copy or download it again.") from error
