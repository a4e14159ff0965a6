"""Zip archives are read as folders are, and never extracted."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ftscale.config.schema import SourceConfig
from ftscale.data.formats import packed
from ftscale.data.sources import file_fingerprints, open_stream, source_files, source_fingerprint

ROLES = ("text", "label")
ROWS = [("fine", "1"), ("poor", "0")]
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)


def archive(path: Path, files: dict[str, str | bytes], *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def texts(rows: list[dict]) -> list[str]:
    return [row["text"] for row in rows]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("name", ["films.zip", "films.csv"])
def test_the_one_file_of_an_archive_is_read_and_resumed_whatever_the_archive_is_called(tmp_path, method, name):
    path = archive(tmp_path / name, {"in/train.csv": CSV, "in/": b""}, method=method)
    source = SourceConfig(path=str(path))
    items = list(open_stream(source, roles=(ROLES,), position=None))
    assert [(row["text"], row["label"], row["_where"]) for row, _ in items] == [
        ("fine", "1", f"{path}/in/train.csv:2"),
        ("poor", "0", f"{path}/in/train.csv:3"),
    ]
    assert list(open_stream(source, roles=(ROLES,), position=items[0][1])) == items[1:]


def test_files_of_every_format_are_read_inside_an_archive(tmp_path, read):
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fine", "poor"], "label": ["1", "0"]}), table)
    objects = [dict(zip(ROLES, row, strict=True)) for row in ROWS]
    files = {
        "a.csv.gz": gzip.compress(CSV.encode()),
        "a.tsv": CSV.replace(",", "\t"),
        "a.jsonl": "\n".join(map(json.dumps, objects)),
        "a.json": json.dumps(objects),
        "a.parquet": table.getvalue(),
        "x.de": "eins\nzwei\n",
        "x.en": "one\ntwo\n",
        "t-images-idx3-ubyte": struct.pack(">4I", 0x803, 2, 1, 1) + b"ab",
        "t-labels-idx1-ubyte": struct.pack(">2I", 0x801, 2) + bytes((7, 3)),
    }
    path = archive(tmp_path / "a.zip", files)
    for name in ("a.csv.gz", "a.tsv", "a.jsonl", "a.json", "a.parquet", "*.tsv"):
        assert texts(read(path / name)) == ["fine", "poor"], name
    pairs = read(f"{path}/x.{{de,en}}", ("source", "target"))
    assert [(row["source"], row["target"]) for row in pairs] == [("eins", "one"), ("zwei", "two")]
    assert [row["label"] for row in read(path / "t-images-idx3-ubyte", ("image", "label"))] == ["7", "3"]


def test_an_archive_of_splits_is_read_by_its_split_and_leaves_out_what_is_hidden(tmp_path, read, refused):
    files = {name: CSV.replace("fine", name[:4]) for name in ("train.csv", "test.csv")}
    path = archive(tmp_path / "a.zip", {**files, "__MACOSX/train.csv": "x", ".hidden.csv": "x", "README.md": "x"})
    assert f"{str(path)!r} holds the splits train, test; set data.train[0].split: train" in refused(path)
    assert texts(read(path, split="test")) == ["test", "poor"]
    assert texts(read(path, split="all")) == ["test", "poor", "trai", "poor"]
    assert texts(read(path / "train.csv")) == ["trai", "poor"]


def test_the_folder_inside_an_archive_gives_the_class(tmp_path, read):
    path = archive(tmp_path / "a.zip", {"r/pos/1.txt": "fine\n", "r/neg/1.txt": "poor\n", "r/neg/2.txt": "bad\n"})
    rows = read(f"{path}/r/*/*.txt", set={"label": "{folder}"})
    assert [(row["text"], row["label"]) for row in rows] == [("poor", "neg"), ("bad", "neg"), ("fine", "pos")]


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("/traim.csv", "is not in the archive {path}; did you mean '{path}/train.csv'?"),
        ("/z/*.what", "is not in the archive {path}; it has 'b.jsonl', 'train.csv'."),
        ("", "holds files of several formats (csv, jsonl); name the files by a pattern, e.g. {path}/*.csv"),
        ("/no.{de,en}", "no.de' is not in the archive {path}"),
    ],
)
def test_what_is_not_in_an_archive_is_refused_with_what_is_there(tmp_path, refused, inside, words):
    path = archive(tmp_path / "a.zip", {"train.csv": CSV, "b.jsonl": "{}"})
    assert words.format(path=path) in refused(f"{path}{inside}", ROLES, ("source", "target"))


def test_names_that_lead_out_of_an_archive_are_left_out_and_nothing_is_written(tmp_path, read, refused):
    path = archive(tmp_path / "a.zip", {"../out.csv": CSV, "/out.csv": CSV, "in.csv": CSV})
    assert texts(read(path)) == ["fine", "poor"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
    assert "is an archive without files; name another" in refused(archive(tmp_path / "b.zip", {"../out.csv": CSV}))


def test_a_bomb_in_an_archive_is_refused_while_it_is_unpacked(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(packed, "MOST_UNPACKED", 2**20)
    line = f'{{"text": "{"a" * 1000}", "label": 1}}\n'
    for name, content in (("a.jsonl", line * 3000), ("a.jsonl.gz", gzip.compress((line * 3000).encode()))):
        path = archive(tmp_path / f"{name}.zip", {name: content})
        assert f"{path}/{name} unpacks to more than 200 times its size and 1048576 bytes" in refused(path)


def test_damaged_locked_and_unknown_archives_are_refused(tmp_path, refused):
    path = archive(tmp_path / "a.zip", {"a.csv": CSV * 50}, method=zipfile.ZIP_STORED)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"fine", b"find"))
    assert f"{path}/a.csv is damaged in its zip archive (Bad CRC-32" in refused(path)
    path.write_bytes(whole[:-30])
    assert f"data.train[0].path: {path} is damaged or no zip archive" in refused(path)
    headers = (whole.index(b"PK\x01\x02"), 0)
    for offsets, value, words in (
        ((8, 6), b"\x01", "is locked by a password; unpack it"),
        ((10, 8), b"\x09", "is compressed in a way that is not read"),
    ):
        content = bytearray(whole)
        for start, offset in zip(headers, offsets, strict=True):
            content[start + offset : start + offset + 1] = value
        path.write_bytes(content)
        assert f"{path}/a.csv {words}" in refused(path)


def test_an_archive_of_images_is_to_be_unpacked(tmp_path, refused):
    path = archive(tmp_path / "a.zip", {"cat/1.png": b"x", "dog/1.png": b"x"})
    assert f"{str(path)!r} is an archive of images; unpack it, and name the folder" in refused(path, ("image", "label"))


def test_a_file_in_an_archive_is_known_by_the_archive_and_its_name(tmp_path):
    path = archive(tmp_path / "a.zip", {"train.csv": CSV, "test.csv": CSV})
    train, test = (SourceConfig(path=f"{path}/{name}.csv") for name in ("train", "test"))
    assert source_files(train) == [path]
    assert list(file_fingerprints(train)) == [str(path)]
    assert source_fingerprint(train) != source_fingerprint(test)
    before = source_fingerprint(train)
    (tmp_path / "moved").mkdir()
    moved = path.rename(tmp_path / "moved/a.zip")
    assert source_fingerprint(SourceConfig(path=f"{moved}/train.csv")) == before
    archive(moved, {"train.csv": CSV.replace("fine", "good"), "test.csv": CSV})
    assert source_fingerprint(SourceConfig(path=f"{moved}/train.csv")) != before
