"""What a run came to: lines of its log, or a table where somebody looks at a terminal."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ftscale.base.errors import counted
from ftscale.base.logs import in_file_alone, log
from ftscale.base.shown import visible
from ftscale.run.folder import Result
from ftscale.train.loop import duration, main_metrics
from ftscale.train.metrics_file import peak_memory_bytes

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL = "95 of 100 such samples"


def tell_end(result: Result, folder: Path) -> None:
    """Say it: on a terminal as a table, with the lines in the run folder's log alone; else as lines everywhere."""
    lines = end_lines(result, folder)
    if log.handlers[0].level > logging.INFO or not sys.stderr.isatty():  # of another rank, or nobody looks
        for line in lines:
            log.info("%s", line)
        return
    from rich.console import Console

    with in_file_alone():
        for line in lines:
            log.info("%s", line)
    # as wide as it needs, so that the terminal breaks long lines, and what is copied of them is whole
    Console(stderr=True, width=10_000).print(end_table(result, folder))


def end_lines(result: Result, folder: Path) -> list[str]:
    """What a run came to, in a few lines: its length, best evaluation, test scores, and what is done with it next."""
    lines = [_headline(result)]
    for name, value, interval in _facts(result, folder):
        lines.append(f"  {name:<15}  {value}" + (f"  ({INTERVAL}: {interval})" if interval else ""))
    return lines


def end_table(result: Result, folder: Path) -> Table:
    """The same as a table of rich."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(_headline(result))), title_justify="left", show_header=False)
    for name, value, interval in _facts(result, folder):
        spread = f"{interval} in {INTERVAL}" if interval else ""
        table.add_row(Text(name), Text(visible(value)), Text(spread))
    return table


def _headline(result: Result) -> str:
    memory = f"{peak_memory_bytes() / 2**30:.1f} GiB at most"
    return f"{result.status} after {counted(result.steps, 'step')} in {duration(result.duration_s)}, {memory}"


def _facts(result: Result, folder: Path) -> Iterator[tuple[str, str, str]]:
    """A name, what is to be said of it, and the interval of a score, "" = none."""
    if (best := result.best) is not None:
        yield "best evaluation", f"step {best['step']}: {best['metric']} {best['value']:.4f}", ""
    scores = {name.removeprefix("test/"): value for name, value in result.metrics.items() if name.startswith("test/")}
    for name in main_metrics(scores):
        low, high = result.intervals.get(f"test/{name}", (None, None))
        interval = "" if low is None else f"{low:.4f} to {high:.4f}"
        yield "test", f"{name} {scores[name]:.4f}", interval
    yield "model", result.model, ""
    yield "to use it", f"ftscale predict {shlex.quote(str(folder))} INPUT", ""
