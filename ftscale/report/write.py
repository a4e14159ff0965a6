"""The command `ftscale report`: pages and pictures as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.base.sealed import write_text
from ftscale.report.facts import REPORT, read_run
from ftscale.report.page import html_of, page_of_run, page_of_runs
from ftscale.report.vega import png_of


def write_report(folders: Sequence[Path], *, out: Path | None = None, png: Path | None = None) -> Iterator[str]:
    """Write the page of a run, or of several beside each other; says each file that it wrote.

    `out`: the file; None = report.html in the run folder, for several runs in the working folder. `png`: the folder for
    each picture. Raises UserError: no run there; a place that cannot be written to.
    """
    names = _names(folders)
    runs = [read_run(folder, name=name) for folder, name in zip(folders, names, strict=True)]
    page = page_of_run(runs[0]) if len(runs) == 1 else page_of_runs(runs)
    path = out or (folders[0] / REPORT if len(runs) == 1 else Path(REPORT))
    try:
        write_text(path, html_of(page))
        yield f"written: {path}"
        if png is not None:
            png.mkdir(parents=True, exist_ok=True)
            for chart in page.charts:
                picture = png / f"{chart.name}.png"
                picture.write_bytes(png_of(chart.spec))
                yield f"written: {picture}"
    except OSError as error:
        place = error.filename or path
        raise UserError(f"--out = {path}: {place} cannot be written ({error.strerror}); name another place.") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """What runs are called beside each other: as their folders, by their whole paths where two are alike."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]
