"""The page that a run leaves in its folder when it ends."""

from __future__ import annotations

from pathlib import Path

from ftscale.base.logs import log
from ftscale.base.sealed import write_text
from ftscale.report.facts import REPORT, read_run


def write_page(folder: Path) -> None:
    """Write report.html. Whatever goes wrong with it is told and ends no run."""
    from ftscale.report.page import html_of, page_of_run

    try:
        write_text(folder / REPORT, html_of(page_of_run(read_run(folder))))
    except Exception as error:  # noqa: BLE001
        log.warning("no %s was written: %s: %s", REPORT, type(error).__name__, error)
