"""Prepared samples on the disk: what is collated as Arrow streams, what is counted as one array each, all mapped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ftscale.base.hashing import hash_file
from ftscale.data.census import contradicting
from ftscale.data.sample import COST, COUNT, HASHES, WHERE, Sample

INPUTS = "inputs.npy"
BLOCK_BYTES = 2**24
"""Samples are written in blocks of at least this size: each block of each column costs a few hundred bytes of memory
when they are read."""


class Store:
    """A folder that samples are written into, source after source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._content = xxhash.xxh3_128()
        self._numbers: dict[str, list[np.ndarray]] = {}
        self._hashes: list[np.ndarray] = []
        self._files: list[str] = []

    def write(self, name: str, chunks: Iterable[Sequence[Sample]]) -> None:
        """The samples of a source as a file of this name; none where there are no samples."""
        import pyarrow as pa

        writer = None
        with pa.OSFile(str(self.folder / name), "wb") as sink:
            for block in _in_blocks(self._told(table) for table in _tables(chunks)):
                writer = writer or pa.ipc.new_stream(sink, block.schema)
                writer.write_table(block)
            if writer:
                writer.close()
        self._files.append(name)

    def close(self) -> dict[str, Any]:
        """Write the arrays; returns what `open_store` needs to be told again."""
        names = sorted(self._numbers)
        for place, name in enumerate(names):
            self._save(f"numbers-{place}.npy", np.concatenate(self._numbers[name]))
        hashes = np.concatenate([np.empty((0, 2), dtype=np.int64), *self._hashes])
        self._save(INPUTS, np.sort(hashes[:, 0]))
        return {
            "files": {name: hash_file(self.folder / name) for name in self._files},
            "samples": self._content.hexdigest(),
            "numbers": names,
            "contradicting": contradicting(hashes),
        }

    def _save(self, name: str, values: np.ndarray) -> None:
        np.save(self.folder / name, values)
        self._files.append(name)

    def _told(self, table: Any) -> Any:
        """What is collated of a table of whole samples; the rest is taken in here."""
        aside = []
        for name in sorted(table.column_names):
            column = table.column(name)
            if name not in (WHERE, HASHES) and not name.endswith("_path"):  # not of places
                _add_column(self._content, name, column)
            if name == HASHES:
                self._hashes += [chunk.flatten().to_numpy().reshape(-1, 2) for chunk in column.chunks]
            elif _is_number(name):
                self._numbers.setdefault(name, []).append(column.to_numpy())
            else:
                continue
            aside.append(name)
        return table.drop_columns(aside)


def read_samples(folder: Path, names: Sequence[str]) -> Any:
    """The samples of the files with these names, as a datasets.Dataset of what is collated and where it was read."""
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset.from_file(str(folder / name)) for name in names]
    return concatenate_datasets(parts) if parts else []


def read_numbers(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(samples,) int64: the costs, and the targets by term. `names`: as `Store.close` returned them."""
    numbers = {name: _mapped(folder / f"numbers-{place}.npy") for place, name in enumerate(names)}
    costs = numbers.pop(COST, np.empty(0, dtype=np.int64))
    return costs, {name.removeprefix(COUNT): counts for name, counts in numbers.items()}


def read_inputs(folder: Path) -> np.ndarray:
    """(rows,) int64: sorted hashes of what the model reads of each row."""
    return _mapped(folder / INPUTS)


def _mapped(path: Path) -> np.ndarray:
    """An array that is read where it is touched, from memory that all processes of a machine share."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _is_number(name: str) -> bool:
    return name == COST or name.startswith(COUNT)


def _tables(chunks: Iterable[Sequence[Sample]]) -> Iterator[Any]:
    """A table of each chunk that has samples, with the columns and types of the first."""
    import pyarrow as pa

    schema = None
    for chunk in chunks:
        if chunk:
            stored = [sample.stored() for sample in chunk]
            schema = schema or pa.schema(map(_narrow, pa.Table.from_pylist(stored).schema))
            yield pa.Table.from_pylist(stored, schema=schema)


def _in_blocks(tables: Iterable[Any]) -> Iterator[Any]:
    import pyarrow as pa

    waiting: list[Any] = []
    size = 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= BLOCK_BYTES:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _add_column(content: xxhash.xxh3_128, name: str, column: Any) -> None:
    content.update(f"{name} {column.type} {len(column)}\0".encode())
    for chunk in column.chunks:
        for buffer in chunk.buffers():
            content.update(buffer or b"")


def _narrow(item: Any) -> Any:
    """Lists of token ids as int32, half the bytes; not those whose name says that they are hashes."""
    import pyarrow as pa

    if item.name.endswith("hashes"):
        return item
    if pa.types.is_struct(item.type):
        return pa.field(
            item.name, pa.struct([_narrow(item.type.field(place)) for place in range(item.type.num_fields)])
        )
    return pa.field(item.name, pa.list_(pa.int32())) if item.type == pa.list_(pa.int64()) else item
