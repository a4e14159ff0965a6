"""Excel workbooks: one sheet, cells as a person sees them."""

from __future__ import annotations

import io
import sys
import zipfile
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from fuzz.anything import budget, damaged
from fuzz.anything import refused as sentence
from hypothesis import given

from ftscale.config.schema import SourceConfig
from ftscale.data.formats import excel
from ftscale.data.sources import detect_format, open_stream

ROWS = [["text", "label"], ["fine", 1], ["poor", 0]]
NAMES = ("text", "label")


def workbook(path: Path, hidden: tuple[str, ...] = (), **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        sheet.sheet_state = "hidden" if name in hidden else "visible"
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_rows_of_a_sheet_are_read_and_resumed(tmp_path):
    path = workbook(tmp_path / "a.xlsx", first=[ROWS[0], ["fine", 1], [], ["poor", 0], [None, None]])
    assert detect_format(path) == "excel"
    items = list(open_stream(SourceConfig(path=str(path)), roles=(NAMES,), position=None))
    assert [(row["text"], row["label"], row["_where"]) for row, _ in items] == [
        ("fine", "1", f"{path}:2"),
        ("poor", "0", f"{path}:4"),
    ]
    assert list(open_stream(SourceConfig(path=str(path)), roles=(NAMES,), position=items[0][1])) == items[1:]


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (3.0, "3"),
        (2.5, "2.5"),
        (0.1 + 0.2, "0.3"),
        (12345678901, "12345678901"),
        (True, "TRUE"),
        ("007", "007"),
        (" x ", " x "),
        (date(2026, 3, 2), "2026-03-02"),
        (datetime(2026, 3, 2, 14, 5), "2026-03-02T14:05:00"),
        (time(14, 5), "14:05:00"),
        ("#N/A", None),
        ("=1+1", None),  # nothing has computed it
        (None, None),
    ],
)
def test_a_cell_is_the_text_that_a_person_sees(tmp_path, read, value, seen):
    path = workbook(tmp_path / "a.xlsx", first=[["text", "other"], [value, "x"]])
    assert [row["text"] for row in read(path, ("text", "other"))] == [seen]


def test_a_formula_has_the_value_that_was_computed_last(tmp_path, read):
    path = workbook(tmp_path / "a.xlsx", first=[["text", "label"], ["fine", "=40+2"]])
    whole = zipfile.ZipFile(path)
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as made:
        for name in whole.namelist():
            made.writestr(name, whole.read(name).replace(b"<v />", b"<v>42</v>").replace(b"<v></v>", b"<v>42</v>"))
    assert [row["label"] for row in read(tmp_path / "b.xlsx")] == ["42"]


def test_without_a_header_columns_have_numbers_and_short_rows_are_filled(tmp_path, read):
    path = workbook(tmp_path / "a.xlsx", first=[["fine"], ["poor", 0]])
    rows = read(path, header=False, columns={"text": 0, "label": 1})
    assert [(row["text"], row["label"]) for row in rows] == [("fine", None), ("poor", "0")]


def test_a_value_behind_the_last_column_is_refused_by_its_row(tmp_path, refused):
    path = workbook(tmp_path / "a.xlsx", first=[*ROWS, ["fine", 1, "note"]])
    assert f"{path}:4 has a value in column 3 where the header ends at column 2; name the column" in refused(path)


def test_the_sheet_is_the_one_that_is_set_or_the_only_one_with_rows(tmp_path, read, refused):
    other = [["text", "label"], ["other", 1]]
    path = workbook(tmp_path / "a.xlsx", ("c",), a=[], b=ROWS, c=other)
    assert [row["text"] for row in read(path)] == ["fine", "poor"]
    for sheet in ("c", 2):
        assert [row["text"] for row in read(path, sheet=sheet)] == ["other"]
    assert "data.train[0].sheet = 'bb' is not known; did you mean 'b'?" in refused(path, sheet="bb")
    assert "data.train[0].sheet = 3 must be below 3, the number of sheets" in refused(path, sheet=3)
    path = workbook(tmp_path / "b.xlsx", **{"2025": ROWS, "2026": other})
    assert f"{path} has rows in the sheets '2025', '2026'; set data.train[0].sheet" in refused(path)
    assert [row["text"] for row in read(path, sheet=2026)] == ["other"]
    assert "has no rows; fill it" in refused(workbook(tmp_path / "c.xlsx", a=[]))
    (tmp_path / "d.csv").write_text("text,label\na,b\n")
    assert "data.train[0].sheet = 'a' is not used" in refused(tmp_path / "d.csv", sheet="a")


def test_a_workbook_under_another_name_in_an_archive_and_packed_is_read(tmp_path, read, refused):
    content = workbook(tmp_path / "a.xlsx", a=ROWS).read_bytes()
    (tmp_path / "a.csv").write_bytes(content)
    assert "is an Excel workbook, or another Office file, whatever its name says; set data.train[0].format: excel" in (
        refused(tmp_path / "a.csv")
    )
    assert len(read(tmp_path / "a.csv", format="excel")) == 2
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/a.xlsx", content)
    assert len(read(tmp_path / "b.zip")) == 2


def test_old_workbooks_and_other_files_are_refused(tmp_path, refused):
    for content, words in (
        (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(512), "save it as .xlsx without a password"),
        (b"text,label\na,b\n", "is no Excel workbook (.xlsx); set its format, or save it as one"),
    ):
        (tmp_path / "a.xlsx").write_bytes(content)
        assert words in refused(tmp_path / "a.xlsx")


def test_a_row_that_no_sheet_has_and_a_bomb_are_refused(tmp_path, refused, monkeypatch):
    path = workbook(tmp_path / "a.xlsx", a=ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(excel, "MOST_UNPACKED", 1000)
        patch.setattr(excel, "MOST_RATIO", 1)
        assert "bytes, more than 1 times its size; if that is right, save it as CSV" in refused(path)
    whole = zipfile.ZipFile(path)
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as made:
        for name in whole.namelist():
            made.writestr(name, whole.read(name).replace(b'<row r="3"', b'<row r="3000000000"'))
    monkeypatch.setattr(excel, "MOST_ROWS", 1000)
    assert "is damaged or no Excel workbook (a row behind the last, 1000)" in refused(tmp_path / "b.xlsx")


def test_without_openpyxl_the_message_says_what_to_install(tmp_path, refused, monkeypatch):
    path = workbook(tmp_path / "a.xlsx", a=ROWS)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert "needs openpyxl; pip install 'ftscale[excel]'" in refused(path)


def test_a_damaged_workbook_is_read_or_refused(tmp_path, read):
    path = workbook(tmp_path / "a.xlsx", a=ROWS)
    stored = io.BytesIO()
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(stored, "w") as made:
        for name in whole.namelist():
            made.writestr(zipfile.ZipInfo(name), whole.read(name))

    @budget(15)
    @given(damaged(stored.getvalue()))
    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        with sentence():
            read(path)

    try_one()


def test_predictions_of_a_workbook_keep_its_cells(tmp_path):
    path = workbook(tmp_path / "a.xlsx", a=[["id", "text"], [7, "fine"]])
    [(row, _)] = open_stream(SourceConfig(path=str(path)), roles=(("text",),), position=None, keep_columns=True)
    assert row["_columns"] == [("id", "7"), ("text", "fine")]


def test_one_large_text_in_all_rows_of_a_small_workbook_is_refused(tmp_path, refused, read):
    """A workbook of Excel's has a text once, whatever the number of cells that show it."""
    plain = workbook(tmp_path / "plain.xlsx", only=[["text"], *[["MANY"]] * 300])
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    part = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{kind}"/></Types>'
    parts = {b"</Types>": part.encode(), b't="inlineStr"><is><t>MANY</t></is>': b't="s"><v>0</v>'}

    def sharing(name: str, text: str) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(plain) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
            for member in before.namelist():
                content = before.read(member)
                for old, new in parts.items():
                    content = content.replace(old, new)
                after.writestr(member, content)
            after.writestr(
                "xl/sharedStrings.xml",
                f'<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>{text}</t></si></sst>',
            )
        return path

    assert [row["text"] for row in read(sharing("small.xlsx", "fine"), ("text",))] == ["fine"] * 300
    large = sharing("large.xlsx", "x" * 1_000_000)
    assert large.stat().st_size < 20_000
    assert "unpacks to more than 268435456 characters of large rows, more than 200 times its size" in refused(
        large, ("text",)
    )
