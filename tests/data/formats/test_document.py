"""A document a file."""

from __future__ import annotations

import gzip
import re
import zipfile
from pathlib import Path

import pytest

from ftscale.config.schema import SourceConfig
from ftscale.data.formats import document
from ftscale.data.sources import open_stream, read_rows

ROLES = (("text",),)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts(path: object, **settings: object) -> list[str]:
    source = SourceConfig(path=str(path), format="document", **settings)
    return [row["text"] for row in read_rows(source, roles=ROLES)]


def test_a_file_is_a_row_with_its_lines_and_without_the_end_of_the_last(tmp_path, read):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffDear Z\u00fcrich,\r\n\r\n  yours\n\n".encode())
    row = {"text": "Dear Z\u00fcrich,\n\n  yours\n", "_where": str(path)}
    assert read(path, *ROLES, format="document") == [row]
    path.write_bytes("Dear Z\u00fcrich,\r\nyours\r\n".encode("utf-16"))
    assert texts(path, encoding="utf-16") == ["Dear Z\u00fcrich,\nyours"]


def test_a_folder_gives_its_texts_and_the_class_is_a_folder(tmp_path, read):
    write(tmp_path, {"pos/2.txt": "b\nb", "neg/1.md": "c", "pos/10.txt": "a", "README.md": "of it", "pos/x.log": "no"})
    rows = read(tmp_path, ("text", "label"), format="document", set={"label": "{folder} {file}"})
    assert [(row["text"], row["label"]) for row in rows] == [("c", "neg 1"), ("a", "pos 10"), ("b\nb", "pos 2")]
    assert texts(tmp_path / "pos" / "*") == ["a", "b\nb", "no"]


def test_a_folder_without_a_name_of_texts_gives_all_files(tmp_path):
    assert texts(write(tmp_path, {"ham/0001.1ea7": "a\n", "ham/0002.b3": "b\n"})) == ["a", "b"]


def test_splits_and_archives_and_compressed_files_are_read_as_of_other_formats(tmp_path, read):
    write(tmp_path, {"train/a.txt.gz": gzip.compress(b"one\ntwo\n"), "test/b.txt": "three"})
    assert texts(tmp_path, split="train") == ["one\ntwo"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("mails/pos/a.txt", "one\ntwo")
    rows = read(tmp_path / "all.zip", ("text", "label"), format="document", set={"label": "{folder}"})
    assert [(row["text"], row["label"]) for row in rows] == [("one\ntwo", "pos")]


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        ("mails", ["a.txt", "pos/b.txt"]),
        ("mails/", ["a.txt", "pos/b.txt"]),
        ("mails/*/*.txt", ["pos/b.txt"]),
        ("*/a.*", ["mails/a.txt"]),
        ("mails/a.txt", [None]),
    ],
)
def test_the_path_of_a_file_stands_beside_its_text_where_there_may_be_several(tmp_path, monkeypatch, path, paths):
    write(tmp_path / "mails", {"a.txt": "a", "pos/b.txt": "b"})
    monkeypatch.chdir(tmp_path)
    source = SourceConfig(path=path, format="document")
    rows = list(read_rows(source, roles=ROLES, keep_columns=True))
    assert [dict(row["_columns"]).get("path") for row in rows] == paths


def test_reading_goes_on_after_a_file(tmp_path):
    write(tmp_path, {"a.txt": "a", "b.txt": "b", "c.txt": "c"})
    source = SourceConfig(path=str(tmp_path), format="document")
    whole = list(open_stream(source, roles=ROLES, position=None))
    rest = open_stream(source, roles=ROLES, position=whole[0][1])
    assert [row["text"] for row, _ in rest] == ["b", "c"]


def test_an_empty_file_is_passed_over_and_blank_ones_are_rows_that_can_be_dropped(tmp_path, caplog):
    write(tmp_path, {"a.txt": "", "b.txt": " \n", "c.txt": "c"})
    assert texts(tmp_path) == [" ", "c"]
    assert f"{tmp_path / 'a.txt'} is empty (0 bytes) and passed over" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"one\ntwo \xe9\n",
            r"encoding = 'utf-8' cannot decode byte 0xe9 in .*a\.txt:2; set data.*encoding",
        ),
        (b"%PDF-1.7\n", r"a\.txt is a PDF, whatever its name says; export its text"),
        (
            b"one\rtwo\rthree",
            r"a\.txt has lines that end in a carriage return alone, .*; rewrite it",
        ),
        ("one\ntwo".encode("utf-16"), r"encoding = 'utf-8' is not that of .*a\.txt, which is UTF-16; set"),
        (
            b"a" * 101,
            r"a\.txt has more than the 100 bytes that a document may have; split it, or set",
        ),
    ],
)
def test_what_is_no_document_is_refused_in_a_sentence(tmp_path, refused, monkeypatch, content, said):
    monkeypatch.setattr(document, "MOST_BYTES", 100)
    (tmp_path / "a.txt").write_bytes(content)
    message = refused(tmp_path / "a.txt", *ROLES, format="document")
    assert re.search(said, message)
    assert "\n" not in message


def test_settings_of_lines_are_refused(tmp_path, refused):
    (tmp_path / "a.txt").write_text("a")
    assert "pattern = '(?P<text>.+)' is not used for" in refused(
        tmp_path / "a.txt", *ROLES, format="document", pattern="(?P<text>.+)"
    )
