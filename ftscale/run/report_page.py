"""What a run leaves in its folder for its page, and the page. Whatever goes wrong with them is told and ends no run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftscale.base.logs import log
from ftscale.base.sealed import write_json, write_text
from ftscale.report.facts import DATA_REPORT, REPORT, read_run
from ftscale.run.data_report import data_report
from ftscale.run.prepared_data import Inputs


def write_data_report(folder: Path, inputs: Inputs) -> None:
    """Write data_report.json, when the run begins: prepared rows may be gone when it ends."""
    with _told_at_most(DATA_REPORT):
        write_json(folder / DATA_REPORT, data_report(inputs), seal=False)


def write_page(folder: Path) -> None:
    """Write report.html, when the run ends."""
    from ftscale.report.page import html_of, page_of_run

    with _told_at_most(REPORT):
        write_text(folder / REPORT, html_of(page_of_run(read_run(folder))))


@contextmanager
def _told_at_most(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.warning("no %s was written: %s: %s", name, type(error).__name__, error)
