"""Excel workbooks (.xlsx): the rows of one sheet, each cell as the text that a person sees, or missing.

Read by openpyxl, row by row (https://openpyxl.readthedocs.io/en/stable/optimized.html). A formula has the value that
was last computed for it.
"""

from __future__ import annotations

import datetime
import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from ftscale.base.errors import UserError, unknown_name
from ftscale.data.formats.base import DataFile, Place, Record, first_bytes, open_bytes
from ftscale.data.formats.content import ZIP, foreign_content
from ftscale.data.formats.packed import DAMAGE, MOST_RATIO, MOST_UNPACKED, LargeRows
from ftscale.data.formats.paths import listed

MOST_ROWS = 2**20
"""Of a sheet, as Excel has it; a damaged one may name a later row, and openpyxl gives all those before it."""
LOOKED_AT = 100
"""Rows of a sheet without a header that its width is taken from."""
ERRORS = frozenset(("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A"))
DIGITS = 15  # that Excel keeps of a number
FAULTS = (
    *(*DAMAGE, OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError),
    *(SyntaxError, NotImplementedError, AssertionError),
)
"""What openpyxl and the readers below it raise for a damaged workbook; a SyntaxError is that of XML."""

Cells = tuple[Any, ...]
Rows = Iterator[tuple[int, list[str | None]]]
"""Numbers, from 1, and cells of the rows that are not blank."""


def columns(file: DataFile) -> tuple[str | int, ...] | None:
    """The names in the first row, or numbers from 0 where there is no header; None for an empty sheet."""
    with _rows(file) as rows:
        first = [cells for _, cells in islice(rows, 1 if file.source.header else LOOKED_AT)]
    if not first:
        return None
    return tuple(name or "" for name in first[0]) if file.source.header else tuple(range(max(map(len, first))))


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record a row that is not blank. A place is `{"record": n}`: the rows before it are read and passed over."""
    known = columns(file)
    if known is None:
        return
    start = place["record"] if place else 0
    width = len(known)
    with _rows(file) as rows:
        first = start + 1 if file.source.header else start
        for record, (number, cells) in enumerate(islice(rows, first, None), start + 1):
            if len(cells) > width:
                by = "header ends" if file.source.header else "first rows end"
                raise file.error(
                    f"has a value in column {len(cells)} where the {by} at column {width}; name the column, or "
                    "take the value out.",
                    line=number,
                )
            cells += [None] * (width - len(cells))
            yield [cells[column] for column in wanted], f"{file.path}:{number}", {"record": record}


@contextmanager
def _rows(file: DataFile) -> Iterator[Rows]:
    """The rows of the sheet. Raises UserError for what is no workbook, and for damage when it is met."""
    with open_bytes(file) as stream:
        head = first_bytes(stream)
        if not head.startswith(ZIP):
            what = foreign_content(head, setting=file.setting)
            raise file.error(what or "is no Excel workbook (.xlsx); set its format, or save it as one.")
        seekable = io.BytesIO(stream.read()) if not stream.seekable() else stream
        with _told_as_damage(file):
            large = LargeRows(size=_checked_size(file, seekable))
            book = _load(seekable)
        try:
            with _told_as_damage(file):
                sheet = _sheet(file, book)
            yield _full_rows(file, sheet, large)
        finally:
            book.close()


def _checked_size(file: DataFile, stream: Any) -> int:
    """Its bytes. Raises UserError for a small one that unpacks to very much by what its entries say.

    zipfile gives no more than that of any.
    """
    with zipfile.ZipFile(stream) as archive:
        unpacked = sum(info.file_size for info in archive.infolist())
    packed = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if unpacked > max(MOST_UNPACKED, MOST_RATIO * packed):
        raise file.error(
            f"unpacks to {unpacked} bytes, more than {MOST_RATIO} times its size; if that is right, save it as CSV."
        )
    return packed


def _load(stream: Any) -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise UserError("an Excel workbook needs openpyxl; pip install 'ftscale[excel]'") from error
    with warnings.catch_warnings():  # of styles and checks that it does not keep
        warnings.simplefilter("ignore", UserWarning)
        return openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)


def _sheet(file: DataFile, book: Any) -> Any:
    """The sheet that is set, or the only one that has rows. Raises UserError where one is to be chosen."""
    sheets = {sheet.title: sheet for sheet in book.worksheets}
    asked, setting = file.source.sheet, f"{file.setting}.sheet"
    if asked is not None and str(asked) in sheets:
        return sheets[str(asked)]
    if isinstance(asked, int):
        if not 0 <= asked < len(sheets):
            raise UserError(
                f"{setting} = {asked} must be below {len(sheets)}, the number of sheets of {file.path}, which are "
                f"{listed(sheets)}; sheets count from 0."
            )
        return list(sheets.values())[asked]
    if asked is not None:
        raise UserError(f"{unknown_name(setting, asked, sheets)} {file.path} has the sheets {listed(sheets)}.")
    if not sheets:
        raise file.error("has no sheet of cells; name another.")
    seen = [sheet for sheet in sheets.values() if sheet.sheet_state == "visible"]
    full = [sheet for sheet in seen if next(_full_rows(file, sheet), None)]
    if len(full) > 1:
        names = [sheet.title for sheet in full]
        raise UserError(f"{file.setting}.path: {file.path} has rows in the sheets {listed(names)}; set {setting}.")
    return (full or list(sheets.values()))[0]


def _full_rows(file: DataFile, sheet: Any, large: LargeRows | None = None) -> Rows:
    sheet.reset_dimensions()  # which some programs write wrong
    with _told_as_damage(file):
        for number, values in enumerate(sheet.iter_rows(min_row=1, min_col=1, values_only=True), 1):
            if number > MOST_ROWS:
                raise ValueError(f"a row behind the last, {MOST_ROWS}")
            cells = [_text(value) for value in values]
            while cells and cells[-1] is None:
                cells.pop()
            if large is not None and large.are_too_many(sum(map(len, filter(None, cells)))):
                raise file.error(
                    f"unpacks to more than {large.most} characters of large rows, more than {MOST_RATIO} times its "
                    "size; if that is right, save it as CSV.",
                    line=number,
                )
            if cells:
                yield number, cells


def _text(value: Any) -> str | None:
    """What a person sees in a cell; None where it is empty, or a formula came to an error."""
    if value is None or value in ERRORS or value == "":
        return None
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


@contextmanager
def _told_as_damage(file: DataFile) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        if isinstance(error, OSError) and error.errno is not None:  # real I/O errors have a number
            raise
        raise file.error(f"is damaged or no Excel workbook ({error}); copy or download it again.") from error
