"""Encodings, byte-order marks and compression, which all line formats share."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random

import pyarrow
import pytest

CONTENT = "text,label\n\u00e9t\u00e9,1\nna\u00efve,0\n"


def _zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "utf-16", "utf-16-le"])
def test_the_encoding_can_be_set(tmp_path, read, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT.encode(encoding))
    assert [(row["text"], row["_where"]) for row in read(path, encoding=encoding)] == [
        ("\u00e9t\u00e9", f"{path}:2"),
        ("na\u00efve", f"{path}:3"),
    ]


def test_a_byte_that_is_not_utf_8_is_named_with_its_line_and_the_fix(tmp_path, refused):
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT.encode("latin-1"))
    message = refused(path)
    assert f"data.train[0].encoding = 'utf-8' cannot decode byte 0xe9 in {path}:2" in message
    assert "set data.train[0].encoding" in message


def test_an_encoding_that_does_not_exist_is_refused(tmp_path, refused):
    path = tmp_path / "a.csv"
    path.write_text(CONTENT)
    assert "data.train[0].encoding = 'utf-9000' is not an encoding" in refused(path, encoding="utf-9000")


@pytest.mark.parametrize(("suffix", "roles"), [("csv", ("text", "label")), ("txt", ("text",))])
def test_a_byte_order_mark_is_no_part_of_the_first_column_or_line(tmp_path, read, suffix, roles):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + CONTENT.encode())
    assert next(iter(read(path, roles)[0].values())) == ("\u00e9t\u00e9" if suffix == "csv" else "text,label")


def test_the_byte_order_mark_of_a_real_file_is_swallowed(shared, read):
    first = read(shared / "data/text_pair/sick/readme.txt", ("text",))[0]["text"]
    assert first.startswith("::::")


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", _zstd)]
)
def test_compressed_files_are_read_and_damaged_ones_refused_by_name(tmp_path, read, refused, suffix, compress):
    noise = random.Random(0)  # so that it does not compress to next to nothing
    lines = "".join(f'{{"text": "row {number}", "label": {noise.random()}}}\n' for number in range(2000))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(lines.encode()))
    rows = read(path)
    assert (len(rows), rows[-1]["text"], rows[-1]["_where"]) == (2000, "row 1999", f"{path}:2000")
    path.write_bytes(compress(lines.encode())[:-200])  # cut off
    assert f"{path} is damaged" in refused(path)
    path.write_bytes(b"\0" + compress(lines.encode()))
    assert f"{path} is damaged or not" in refused(path)
    path.write_bytes(lines.encode())  # a browser unpacked it and kept its name
    assert read(path)[-1]["text"] == "row 1999"
