"""What reading rows costs: files of lines read by ftscale, beside Python's own csv and json that check nothing.

    python benchmarks/reading.py [--rows 100000] [--repeats 5]

Both give a dict a row. ftscale's has its place in the file, from which a stream goes on, and went through every check:
encoding, width, characters, missing values. Processor seconds, in turn, medians; `ratio` is ours by Python's. Results
go into benchmarks/results/reading.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from ftscale.config.schema import SourceConfig
from ftscale.data.sources import read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/reading.json"
ROLES = (("text", "label"),)

Read = Callable[[str], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        formats = {
            name: compare(write(Path(folder), name, arguments.rows), plain, arguments.rows, arguments.repeats)
            for name, plain in PLAIN.items()
        }
    record = {
        "command": f"python benchmarks/reading.py --rows {arguments.rows} --repeats {arguments.repeats}",
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, CPU",
        "python": platform.python_version(),
        "formats": formats,
    }
    print(json.dumps(formats, indent=1))
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def write(folder: Path, name: str, rows: int) -> str:
    """A file of short rows."""
    numbers = range(rows)
    lines = {
        "csv": ["text,label", *(f'"a short row, about {number}",1' for number in numbers)],
        "tsv": ["text\tlabel", *(f"a short row, about {number}\t1" for number in numbers)],
        "jsonl": [f'{{"text": "a short row, about {number}", "label": 1}}' for number in numbers],
    }[name]
    path = folder / f"rows.{name}"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def compare(path: str, plain: Read, rows: int, repeats: int) -> dict[str, Any]:
    """Rows a second of each, and the ratio of what they cost."""
    times: dict[Read, list[float]] = {ours: [], plain: []}
    for read in (plain, ours) * repeats:
        start = time.process_time()
        assert read(path) == rows
        times[read].append(time.process_time() - start)
    mine, theirs = median(times[ours]), median(times[plain])
    return {
        "rows_per_s": round(rows / mine),
        "python_rows_per_s": round(rows / theirs),
        "ratio": round(mine / theirs, 2),
    }


def ours(path: str) -> int:
    return sum(1 for _ in read_rows(SourceConfig(path=path), roles=ROLES))


def plain_csv(path: str) -> int:
    with open(path, newline="") as stream:
        return sum(1 for _ in csv.DictReader(stream))


def plain_tsv(path: str) -> int:
    with open(path, newline="") as stream:
        return sum(1 for _ in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def plain_jsonl(path: str) -> int:
    with open(path) as stream:
        return sum(1 for row in map(json.loads, stream) if row)


PLAIN: dict[str, Read] = {"csv": plain_csv, "tsv": plain_tsv, "jsonl": plain_jsonl}


if __name__ == "__main__":
    main()
