"""What a run came to: lines of its log, or a table where somebody looks at a terminal."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftscale.base.errors import counted
from ftscale.base.logs import in_file_alone, log
from ftscale.base.shown import visible
from ftscale.metrics.main_metrics import main_metrics
from ftscale.run.folder import Result
from ftscale.train.loop import duration
from ftscale.train.metrics_file import peak_memory_bytes

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL = "95 of 100 such samples"
COPIED = ("model", "to use it")
"""Facts that somebody copies."""
WIDE = 10_000  # columns


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
    console = Console(stderr=True)
    for part in end_parts(result, folder, width=console.width):
        console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)


def end_lines(result: Result, folder: Path) -> list[str]:
    """What a run came to, in a few lines: its length, best evaluation, test scores, and what is done with it next."""
    lines = [_headline(result)]
    for name, value, interval in _facts(result, folder):
        lines.append(f"  {name:<15}  {value}" + (f"  ({INTERVAL}: {interval})" if interval else ""))
    return lines


def end_parts(result: Result, folder: Path, *, width: int) -> list[Table | str]:
    """The same as a table of rich, or as a narrower one and lines below it. `width`: columns of the terminal.

    A path and a command, which somebody copies, would be broken between two rows of a table that is too narrow: they
    are the lines then, and stand below their names where they do not fit behind them.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement

    title, facts = _headline(result), list(_facts(result, folder))
    whole, console = _table(title, facts, narrow=False), Console(width=WIDE)
    if Measurement.get(console, console.options, whole).maximum <= width:
        return [whole]
    parts: list[Table | str] = [_table(title, [fact for fact in facts if fact[0] not in COPIED], narrow=True)]
    for name, value, _ in facts:
        if name in COPIED:
            line = f"{name:<{max(map(len, COPIED))}}  {visible(value)}"
            parts += [line] if cell_len(line) <= width else [name, visible(value)]
    return parts


def _table(title: str, facts: Sequence[tuple[str, str, str]], *, narrow: bool) -> Table:
    """The facts, a row each; where some have intervals these are a column, `narrow` with what they mean above it."""
    from rich.table import Table
    from rich.text import Text

    headers = ["", ""] + [f"in {INTERVAL}"] * any(interval for _, _, interval in facts)
    has_header = narrow and len(headers) > 2
    table = Table(*headers, title=Text(visible(title)), title_justify="left", show_header=has_header)
    for name, value, interval in facts:
        spread = f"{interval} in {INTERVAL}" if interval and not narrow else interval
        cells = (Text(name), Text(visible(value)), Text(spread))
        table.add_row(*cells[: len(headers)])
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
