"""Columns computed once over prepared samples: kept beside them under a hash, complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ftscale.base.files import partial_path, remove, without_link
from ftscale.base.hashing import hash_file
from ftscale.base.logs import log
from ftscale.base.sealed import DamagedError, read_json, sync, write_json
from ftscale.data.cache import check_owner

FORMAT = 1  # of the files below; a new number makes old caches unread
VALUES, REPORT = "values.npy", "report.json"


class ColumnValues:
    """The values of a column while they are computed: in memory, or in a file."""

    def __init__(self, num_samples: int, *, file: Path | None = None) -> None:
        self.num_samples = num_samples
        self.file = file
        self._array: np.ndarray | None = None

    def put(self, numbers: np.ndarray, values: np.ndarray) -> None:
        """Take in the values (samples, ...) of samples with these numbers. Raises ValueError for another shape."""
        if self._array is None:
            shape = (self.num_samples, *values.shape[1:])
            if self.file is None:
                self._array = np.empty(shape, dtype=values.dtype)
            else:
                self._array = np.lib.format.open_memmap(self.file, mode="w+", dtype=values.dtype, shape=shape)
        if values.shape != (len(numbers), *self._array.shape[1:]):
            raise ValueError(f"shape {values.shape} after {self._array.shape[1:]} of each sample before")
        self._array[numbers] = values

    def all(self) -> np.ndarray:
        """(samples, ...): what was taken in."""
        assert self._array is not None
        return self._array

    def flush(self) -> None:
        """Have a file's values written to it."""
        array, self._array = self._array, None
        if isinstance(array, np.memmap):
            array.flush()


def column_digest(about: Mapping[str, Any]) -> str:
    """A hash of what a column's values follow from besides the prepared rows."""
    return hashlib.sha256(json.dumps([FORMAT, about], sort_keys=True).encode()).hexdigest()[:16]


def column_folder(prepared: Path, *, name: str, digest: str) -> Path:
    """Where the column of a folder of prepared rows lies."""
    return prepared.with_name(f"{prepared.name}-{name}-{digest}")


def is_whole(folder: Path) -> bool:
    """Whether a column lies there as it was written. Raises UserError where another user wrote it."""
    check_owner(folder)
    if not folder.is_dir():
        return False
    try:
        if read_json(folder / REPORT, needs_hash=True)["values"] == hash_file(folder / VALUES):
            return True
    except (OSError, DamagedError, KeyError):
        pass
    log.warning("the computed column in %s is damaged or was changed: it is computed anew", folder)
    return False


def read_column(folder: Path) -> np.ndarray:
    """(samples, ...): the values, read where they are touched."""
    return np.load(folder / VALUES, mmap_mode="r", allow_pickle=False)


@contextmanager
def new_column(folder: Path, num_samples: int) -> Iterator[ColumnValues]:
    """Inside, a column takes in its values; afterwards it lies in the folder, whole, or after an error not at all.

    Several runs may be at it: each writes for itself, and the first to be ready gives the folder its values.
    """
    from filelock import FileLock

    _remove_left(folder)
    partial = partial_path(folder)
    # held while the folder is there: one that nobody holds is of a writer that was killed
    with FileLock(without_link(_lock_of(partial))):
        partial.mkdir(mode=0o700)
        try:
            values = ColumnValues(num_samples, file=partial / VALUES)
            yield values
            values.flush()
            sync([partial / VALUES])
            write_json(partial / REPORT, {"values": hash_file(partial / VALUES), "samples": num_samples})
            if not is_whole(folder):
                remove(folder)
                with suppress(OSError):  # another run was ready in between
                    os.rename(partial, folder)
        finally:
            remove(partial)
            _lock_of(partial).unlink(missing_ok=True)


def _lock_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.lock")


def _remove_left(folder: Path) -> None:
    """Delete what writers of this column left that were killed; one that lives holds its lock."""
    from filelock import FileLock, Timeout

    for left in folder.parent.glob(f".{folder.name}.*.partial"):
        with suppress(Timeout), FileLock(without_link(_lock_of(left)), timeout=0):
            remove(left)
            _lock_of(left).unlink(missing_ok=True)
