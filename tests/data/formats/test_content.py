"""Files that hold something else than their name says."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

CSV = b"text,label\na fine film,1\nan endless mess,0\n"


def _zip(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train.csv"), io.BytesIO())
    return buffer.getvalue()


def _parquet() -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": ["0", "1"]}), sink)
    return sink.getvalue()


CONTENTS = {
    "gzip twice": (gzip.compress(gzip.compress(CSV)), "is compressed twice; unpack it once."),
    "zip in gzip": (gzip.compress(_zip(**{"train.csv": CSV})), "is a zip archive, whatever its name says; unpack it"),
    "old Excel": (bytes.fromhex("d0cf11e0a1b11ae1") + bytes(512), "save it as .xlsx without a password"),
    "xlsx": (_zip(**{"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}), "is an Excel workbook"),
    "tar": (_tar(), "is a tar archive"),
    "parquet": (_parquet(), "is a Parquet file, whatever its name says; set data.train[0].format: parquet"),
    "utf-16": (CSV.decode().encode("utf-16"), "set data.train[0].encoding: utf-16."),
    "utf-16 without a mark": (CSV.decode().encode("utf-16-le"), "set data.train[0].encoding: utf-16-le."),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run git lfs pull"),
    "returns alone": (CSV.replace(b"\n", b"\r"), "has lines that end in a carriage return alone"),
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt", ".conll"])
@pytest.mark.parametrize("content", CONTENTS)
def test_what_a_text_file_holds_instead_is_told_by_its_first_bytes(tmp_path, refused, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(CONTENTS[content][0])
    message = refused(path, ("text",) if suffix == ".txt" else ("text", "label"))
    assert CONTENTS[content][1] in message
    assert str(path) in message


@pytest.mark.parametrize("content", sorted(set(CONTENTS) - {"returns alone"}))  # white space to JSON
def test_a_json_file_is_looked_at_too(tmp_path, refused, content):
    (tmp_path / "a.json").write_bytes(CONTENTS[content][0])
    assert CONTENTS[content][1] in refused(tmp_path / "a.json")


@pytest.mark.parametrize("content", ["parquet", "tar", "utf-16"])
def test_what_lies_inside_a_compressed_file_is_told_as_well(tmp_path, refused, content):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(CONTENTS[content][0]))
    assert CONTENTS[content][1] in refused(tmp_path / "a.csv.gz")


def test_what_is_advised_reads_the_file(tmp_path, read):
    (tmp_path / "a.csv").write_bytes(CONTENTS["parquet"][0])
    assert [row["label"] for row in read(tmp_path / "a.csv", format="parquet")] == ["0", "1"]
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "b.csv").write_bytes(CSV.decode().encode(encoding))
        assert [row["label"] for row in read(tmp_path / "b.csv", encoding=encoding)] == ["1", "0"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,label\nPAR1 is a name,1\n"),
        ("b.csv", b'text,label\r\n"a\rb",1\r\n'),
        ("c.csv", "text,label\n\u4e2d\u6587,1\n".encode()),
        ("d.csv", b"text,label\n" + b"x" * 100_000 + b",1\n"),
    ],
)
def test_ordinary_files_are_not_taken_for_others(tmp_path, read, name, content):
    (tmp_path / name).write_bytes(content)
    assert len(read(tmp_path / name)) == 1


@pytest.mark.parametrize("name", ["b.csv", "b.csv.gz", "b.jsonl", "b.parquet", "b.txt", "b.json"])
def test_a_file_of_no_bytes_is_passed_over_among_others_and_refused_alone(tmp_path, read, refused, caplog, name):
    (tmp_path / name).touch()
    roles = ("text",) if name.endswith(".txt") else ("text", "label")
    assert f"{str(tmp_path / name)!r} has no rows; fill it" in refused(tmp_path / name, roles)
    assert f"{tmp_path / name} is empty (0 bytes) and passed over" in caplog.text
    full = tmp_path / name.replace("b.", "a.")
    fill = {".gz": gzip.compress(CSV), ".parquet": _parquet(), ".txt": b"x\n", ".csv": CSV}
    fill |= {".jsonl": b'{"text": "a", "label": 1}\n', ".json": b'[{"text": "a", "label": 1}]'}
    full.write_bytes(fill[full.suffix])
    assert len(read(f"{tmp_path}/?.{name.partition('.')[2]}", roles)) in (1, 2)
