"""Answers beside the rows that they are for, cell for cell: as CSV, TSV, JSON lines, Parquet or CoNLL.

Vectors may also be written alone, as one array of NumPy's.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from ftscale.base.errors import UserError
from ftscale.base.files import open_new, open_new_bytes, partial_path
from ftscale.config.schema import SourceConfig

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet", ".conll", ".npy")
DELIMITED = {".csv": "csv", ".tsv": "tsv"}
ROWS_AT_ONCE = 8192
NO_SCORE = "_"  # of a word that has no token; CoNLL has no empty cells
ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})

Column = tuple[str, Any]
"""Name and value."""
Key = tuple[str, int]
"""Name, and which of the columns of that name."""


@dataclass(frozen=True)
class Answer:
    """A row and what the model says of it."""

    columns: Sequence[Column]
    """The row as it came; several may have one name."""
    added: dict[str, Any]
    """`prediction`, `score` and whatever else comes after the row's own columns."""
    words: Sequence[str] | None = None
    """Of a row of words."""

    def as_dict(self) -> dict[str, Any]:
        """Everything by name; a second column of a name is called `name.1`."""
        found: dict[str, Any] = {}
        for name, value in self.columns:
            number, unique = 0, name
            while unique in found:
                number += 1
                unique = f"{name}.{number}"
            found[unique] = value
        return {**found, **self.added}


Write = Callable[[Answer], None]


@contextmanager
def open_answers(out: Path | None, *, source: SourceConfig, form: str) -> Iterator[Write]:
    """A function that writes an answer; the file has its name when all are written. None = printed as JSON lines.

    `source`, `form`: how the rows were read: CSV and TSV are written with the same separator and header, or none.
    Raises UserError, with the way out, for what a format cannot hold.
    """
    if out is None:
        ascii_only = codecs.lookup(sys.stdout.encoding or "utf-8").name != "utf-8"  # JSON's own escapes then
        yield lambda answer: print(as_json(answer.as_dict(), ascii_only=ascii_only))
        return
    temporary = partial_path(out)
    try:
        if out.suffix == ".parquet":
            with _parquet_writer(temporary, out, source=source, form=form) as write:
                yield write
        elif out.suffix == ".npy":
            with open_new_bytes(temporary) as array:
                vectors = _Vectors(array, out)
                yield vectors
                vectors.end()
        else:
            with open_new(temporary, newline="") as file:
                yield _text_writer(file, out, source=source, form=form)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(value: Any, *, ascii_only: bool = False) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(value, ensure_ascii=ascii_only, default=_described)


def _text_writer(file: TextIO, out: Path, *, source: SourceConfig, form: str) -> Write:
    if out.suffix == ".jsonl":
        return lambda answer: print(as_json(answer.as_dict()), file=file)
    if out.suffix == ".conll":
        return partial(_write_sentence, file, out, _separator_of(source) if form == "conll" else " ")
    return _Table(file, out, source=source, form=form)


# ---------------------------------------------------------------- CSV and TSV


class _Table:
    """Writes a table with the columns of the first row; lists and dicts are written as JSON."""

    def __init__(self, file: TextIO, out: Path, *, source: SourceConfig, form: str) -> None:
        kind = DELIMITED[out.suffix]
        separator = source.separator if form == kind else None
        self._separator = separator or ("\t" if kind == "tsv" else ",")
        self._has_header = source.header or form not in DELIMITED.values()
        self._names: list[str] | None = None
        self._file, self._out, self._is_tsv = file, out, kind == "tsv"
        self._csv = csv.writer(file, delimiter=self._separator)

    def __call__(self, answer: Answer) -> None:
        names = [name for name, _ in answer.columns] + list(answer.added)
        if self._names is None:
            self._names = names
            if self._has_header:
                self._write(names, [])
        if names == self._names:  # of which several may be one and the same
            self._write([value for _, value in answer.columns], list(answer.added.values()))
            return
        if unknown := (set(names) - set(self._names)) | {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"--out = {self._out}: a row has the column {min(unknown)!r}, the first has not; write .jsonl."
            )
        values = dict(answer.columns)
        own = self._names[: len(self._names) - len(answer.added)]
        self._write([values.get(name) for name in own], list(answer.added.values()))

    def _write(self, given: Sequence[Any], added: Sequence[Any]) -> None:
        if not self._is_tsv:
            self._csv.writerow([_cell(value) for value in (*given, *added)])
            return
        cells = [_text(value) for value in given]  # quotes are part of the text, as the reader takes them
        strange = next((cell for cell in cells if any(mark in cell for mark in (self._separator, "\n", "\r"))), None)
        if strange is not None:
            raise UserError(
                f"--out = {self._out}: {strange[:60]!r} has a line break or separator, which TSV cannot hold; write "
                ".csv, .jsonl or .parquet."
            )
        cells += [_text(value).translate(ESCAPES) for value in added]
        self._file.write(self._separator.join(cells) + "\n")


def _cell(value: Any) -> Any:
    return as_json(value) if isinstance(value, (list, dict)) else _described(value) if _is_bytes(value) else value


def _text(value: Any) -> str:
    return "" if value is None else str(_cell(value))


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def _described(value: Any) -> str:
    """What text cannot hold: the bytes of an image are left out."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


# ---------------------------------------------------------------- NumPy


class _Vectors:
    """Writes predictions that are lists of numbers as one array (rows, size) of float32; NaN where there is none.

    The number of rows is known at the end: NumPy's header has room for it.
    """

    def __init__(self, file: BinaryIO, out: Path) -> None:
        self._file, self._out = file, out
        self._rows = 0
        self._size: int | None = None

    def __call__(self, answer: Answer) -> None:
        vector = answer.added["prediction"]
        if vector is not None and not (isinstance(vector, list) and vector and isinstance(vector[0], float)):
            raise UserError(f"--out = {self._out}: an array holds vectors; write .csv, .jsonl or .parquet.")
        if vector is not None and self._size is None:
            self._size = len(vector)
            self._write_header()
            self._write([math.nan] * self._size * self._rows)
        if self._size is not None:
            self._write([math.nan] * self._size if vector is None else vector)
        self._rows += 1

    def end(self) -> None:
        """Write how many there are."""
        if self._size is None:
            raise UserError(f"--out = {self._out}: no row has a vector; see the notes of rows in .jsonl.")
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._size)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def _write(self, values: Sequence[float]) -> None:
        self._file.write(np.asarray(values, dtype="<f4").tobytes())


# ---------------------------------------------------------------- CoNLL


def _write_sentence(file: TextIO, out: Path, separator: str, answer: Answer) -> None:
    """A word a line with its cells, its tag and the tag's probability."""
    words = answer.words
    if words is None:
        raise UserError(f"--out = {out}: a CoNLL file holds words with their tags; write .csv, .jsonl or .parquet.")
    by_word = [value for _, value in answer.columns if _is_by_word(value, words)]
    others = [name for name, value in answer.columns if not _is_by_word(value, words)]
    if len(others) > (0 if by_word else 1):  # of a plain text, the words are the one column
        raise UserError(f"--out = {out}: the column {others[0]!r} has no cell for each word; write .jsonl or .parquet.")
    tags = answer.added["prediction"] or [NO_SCORE] * len(words)
    scores = answer.added.get("scores") or [None] * len(words)
    for cells in zip(*(by_word or [words]), tags, scores, strict=True):
        *given, tag, of_tags = cells
        score = NO_SCORE if of_tags is None else f"{of_tags[tag]:.6f}"
        file.write(separator.join([*map(_text, given), tag, score]) + "\n")
    file.write("\n")


def _separator_of(source: SourceConfig) -> str:
    """What stands between the cells of a CoNLL file: as it is set, or else a tab where the first lines have one."""
    from ftscale.data.formats.base import first_bytes, open_bytes
    from ftscale.data.formats.discover import discover

    if source.separator is not None:
        return source.separator
    with open_bytes(discover(source, setting="input")[0]) as stream:
        return "\t" if b"\t" in first_bytes(stream) else " "


def _is_by_word(value: Any, words: Sequence[str]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == len(words)


# ---------------------------------------------------------------- Parquet


@contextmanager
def _parquet_writer(temporary: Path, out: Path, *, source: SourceConfig, form: str) -> Iterator[Write]:
    """Rows go to Arrow files first: only the last one tells the types of all columns."""
    rows: list[Answer] = []
    parts: list[Path] = []
    added: set[str] = set()
    known = _known_schema(source) if form == "parquet" else None
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:

        def flush() -> None:
            parts.append(Path(folder, f"{len(parts):06}.arrow"))
            _write_part(parts[-1], rows, known=known, out=out)
            rows.clear()

        def write(answer: Answer) -> None:
            rows.append(answer)
            added.update(answer.added)
            if len(rows) == ROWS_AT_ONCE:
                flush()

        yield write
        flush()
        _join_parts(parts, temporary, known=known, last=added, out=out)


def _known_schema(source: SourceConfig) -> Any:
    import pyarrow.parquet

    from ftscale.data.formats.base import open_bytes
    from ftscale.data.formats.discover import discover

    with open_bytes(discover(source, setting="input")[0]) as stream:
        return pyarrow.parquet.read_schema(stream)


def _write_part(path: Path, rows: Sequence[Answer], *, known: Any, out: Path) -> None:
    import pyarrow as pa

    columns: dict[Key, list[Any]] = {}
    for number, answer in enumerate(rows):
        for key, value in _keyed([*answer.columns, *answer.added.items()]):
            column = columns.setdefault(key, [None] * number)
            column.append(value)
        for column in columns.values():
            column += [None] * (number + 1 - len(column))
    types = dict(_keyed([(field.name, field.type) for field in known])) if known is not None else {}
    arrays = [_array(values, types.get(key), key=key, out=out) for key, values in columns.items()]
    table = pa.Table.from_arrays(arrays, names=[json.dumps(key) for key in columns])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _keyed(columns: Sequence[Column]) -> Iterator[tuple[Key, Any]]:
    seen: dict[str, int] = {}
    for name, value in columns:
        seen[name] = seen.get(name, -1) + 1
        yield (name, seen[name]), value


def _array(values: list[Any], known: Any, *, key: Key, out: Path) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values, type=known, from_pandas=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError) as error:
        raise _mixed(key, out) from error


def _join_parts(parts: Sequence[Path], temporary: Path, *, known: Any, last: set[str], out: Path) -> None:
    """One Parquet file of all parts. `last`: names of the columns that come after the rows' own."""
    import pyarrow as pa
    import pyarrow.parquet

    types: dict[Key, Any] = {}
    for part in parts:
        with pa.memory_map(str(part)) as source:
            for field in pa.ipc.open_file(source).schema:
                key = (*json.loads(field.name),)
                types[key] = _common(types.get(key, field.type), field.type, key=key, out=out)
    types = dict(sorted(types.items(), key=lambda item: item[0][0] in last))
    # without the features of `datasets`, which would refuse the new columns
    metadata = {key: value for key, value in ((known and known.metadata) or {}).items() if key != b"huggingface"}
    schema = pa.schema([pa.field(name, kind) for (name, _), kind in types.items()], metadata=metadata or None)
    try:
        writer = pyarrow.parquet.ParquetWriter(temporary, schema)
    except pa.ArrowNotImplementedError as error:  # objects that are empty in all rows
        raise UserError(f"--out = {out}: Parquet cannot hold a column of the rows ({error}); write .jsonl.") from error
    with writer:
        for part in parts:
            with pa.memory_map(str(part)) as source:
                table = pa.ipc.open_file(source).read_all()
                names = table.schema.names
                arrays = [
                    table.column(names.index(json.dumps(key))).cast(kind)
                    if json.dumps(key) in names
                    else pa.nulls(table.num_rows, kind)
                    for key, kind in types.items()
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _common(first: Any, second: Any, *, key: Key, out: Path) -> Any:
    """The type that holds values of both."""
    import pyarrow as pa

    try:
        both = [pa.schema([pa.field("x", kind)]) for kind in (first, second)]
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _mixed(key, out) from error


def _mixed(key: Key, out: Path) -> UserError:
    return UserError(
        f"--out = {out}: the column {key[0]!r} has values of several types, which Parquet cannot hold; write .jsonl."
    )
