"""What is no rows: archives, XML and HTML, and how data of other tasks are refused."""

from __future__ import annotations

from ftscale.base.errors import UserError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
STARTS = ("<?xml", "<!doctype", "<html", "<rss", "<tei")
ALTERNATIVES = ("<a1>", "<choice1>", "<option>", "alternative")


def refuse_archive(path: str) -> None:
    """Raise UserError for a tar archive, by its name."""
    if path.lower().endswith(ARCHIVES):
        raise no_archive(path)


def refuse_markup(path: str, head: str) -> None:
    """Raise UserError for XML and HTML, by the first lines of a text."""
    start = head.lstrip("\ufeff \t\r\n")
    if not start[:20].lower().startswith(STARTS):
        return
    raise no_format(path, "XML with alternatives" if any(mark in start for mark in ALTERNATIVES) else "XML or HTML")


def no_archive(path: str) -> UserError:
    """Return the error for an archive, with what unpacks it."""
    how = f"unzip {path} -d data" if path.lower().endswith(".zip") else f"mkdir data && tar -xf {path} -C data"
    return UserError(f"FILE = {path} is an archive; unpack it ({how}), then: ftscale init data")


def no_task(path: str, what: str, seen: str, nearest: str) -> UserError:
    """Return the error for data of a task that ftscale does not have."""
    return UserError(
        f"FILE = {path} looks like data for {what} ({seen}), for which ftscale has no task yet; nearest: {nearest}."
    )


def no_format(path: str, what: str) -> UserError:
    """Return the error for a file that holds no rows."""
    return UserError(f"FILE = {path} holds {what}, which no format reads; write its rows as CSV or JSON lines.")
