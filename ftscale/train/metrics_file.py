"""Figures of the run: metrics.jsonl, the log line, the progress bar."""

from __future__ import annotations

import json
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from ftscale.base.files import open_to_append
from ftscale.base.logs import log
from ftscale.base.sealed import read_lines, write_text


class MetricsFile:
    """Appends one JSON object a line to metrics.jsonl, which is there from the first line on.

    On other ranks than 0 (`enabled` False) it does nothing.
    """

    def __init__(self, path: Path, *, enabled: bool, start_time: float) -> None:
        self._path = path if enabled else None
        self._file: TextIO | None = None
        self._start = start_time

    def write(self, kind: str, step: int, **figures: Any) -> None:
        """`kind`: train, eval or event; figures that are not finite are written as text, since JSON has none."""
        if self._path is not None:
            self._file = self._file or open_to_append(self._path)
            line = {"kind": kind, "step": step, "time_s": round(time.time() - self._start, 3), **figures}
            self._file.write(json.dumps({name: _json_number(value) for name, value in line.items()}) + "\n")

    def sync(self) -> None:
        """Have all lines so far on the disk itself, as the checkpoint that follows them will be."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; nothing can be lost by it, since each line was flushed when it was written."""
        if self._file is not None:
            with suppress(OSError):  # each line was flushed, or its error raised by `write`
                self._file.close()


def cut_metrics(path: Path, *, after_step: int) -> None:
    """Drop what a run wrote beyond the checkpoint that it goes on from, and lines that are not what was written."""
    if path.is_file():
        lines, damaged = metric_lines(path)
        if damaged:
            log.warning("%d lines of %s are not what was written; left out", damaged, path)
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= after_step))


def metric_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a metrics.jsonl, and how many were damaged. None of them where there is no file."""
    lines, damaged = read_lines(path)
    good = [line for line in lines if isinstance(line.get("kind"), str) and type(line.get("step")) is int]
    return good, damaged + len(lines) - len(good)


def rows_hash(rows: torch.Tensor) -> int:
    """A sum of 32-bit hashes of row numbers: (samples,) int64. Equal sums on any division of a batch mean equal rows.

    The hash is the finalizer of MurmurHash3 in 64 bits; 2^20 rows and more add up exactly in a float64.
    """
    hashed = rows.cpu().numpy().astype(np.uint64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashed ^= hashed >> np.uint64(33)
        hashed *= np.uint64(factor)
    return int((hashed >> np.uint64(32)).sum())


def peak_memory_bytes() -> int:
    """Most memory so far: allocated on the GPU, or the resident size of the process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _json_number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and value - value != 0 else value
