"""Positions, limits, fingerprints and speed: what all formats share."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ftscale.base import hashing
from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data import sources
from ftscale.data.sources import file_fingerprints, open_stream, read_rows, source_fingerprint

ROLES = (("text", "label"),)
NUM_ROWS = 23
TEXTS = [f"row {number} \u00e9t\u00e9" + "\nand more" * (number % 3) for number in range(NUM_ROWS)]


def _csv(start: int = 0, stop: int = NUM_ROWS, *, end: str = "\r\n") -> bytes:
    rows = (f'"{text}",{number % 2}{end}{end if number % 5 == 0 else ""}' for number, text in enumerate(TEXTS))
    return f"\ufefftext,label{end}{''.join(itertools.islice(rows, start, stop))}".encode()


def _lines(line: Callable[[int], str]) -> bytes:
    return "".join(line(number) + "\n" * (1 + (number % 4 == 0)) for number in range(NUM_ROWS)).encode()


def _json_line(number: int) -> str:
    return json.dumps({"text": TEXTS[number], "label": number}, ensure_ascii=False)


def _tsv_line(number: int) -> str:
    return f'"quoted {number} \u00fc\t{number}'


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def _several_csv(folder: Path) -> str:
    for name, start, stop in (("1", 0, 9), ("2", 9, 9), ("3", 9, NUM_ROWS)):  # the second has a header alone
        _write(folder / f"{name}.csv", _csv(start, stop))
    return f"{folder}/*.csv"


def _parallel(folder: Path) -> str:
    _write(folder / "a.de", _lines(lambda number: f"S\u00e4tze {number}"))
    _write(folder / "a.en", _lines(lambda number: f"sentences {number}" + "!" * number))
    return f"{folder}/a.{{de,en}}"


def _parquet(folder: Path) -> str:
    table = pyarrow.table({"text": TEXTS, "label": list(range(NUM_ROWS))})
    pyarrow.parquet.write_table(table, folder / "a.parquet", row_group_size=7)
    return f"{folder}/a.parquet"


def _idx(folder: Path) -> str:
    pixels = bytes(number % 256 for number in range(NUM_ROWS * 6))
    _write(
        folder / "x-labels-idx1-ubyte.gz", gzip.compress(struct.pack(">2I", 0x801, NUM_ROWS) + bytes(range(NUM_ROWS)))
    )
    content = struct.pack(">4I", 0x803, NUM_ROWS, 2, 3) + pixels
    return _write(folder / "x-images-idx3-ubyte.gz", gzip.compress(content))


def _images(folder: Path) -> str:
    for number in range(NUM_ROWS):
        (folder / f"class{number % 3}").mkdir(exist_ok=True)
        Image.new("L", (1, 1)).save(folder / f"class{number % 3}" / f"{number}.png")
    return str(folder)


def _hub(folder: Path) -> str:
    _write(folder / "train.jsonl", _lines(_json_line))
    return str(folder)


def _split_file(folder: Path) -> str:
    return _write(folder / "a.json", json.dumps({"of": {"train": [[TEXTS[n], n] for n in range(NUM_ROWS)]}}).encode())


def _json_path(number: int) -> str:
    return json.dumps({"row": {"text": [TEXTS[number]]}, "label": number})


PATTERN = r"(?P<label>\S+):\S+ (?P<text>.+)"
CONLL = _lines(lambda number: "\n".join([f"word{number}\tO"] * (1 + number % 3)) + "\n")
JSON_LIST = ("[" + ",".join(map(_json_line, range(NUM_ROWS))) + "]").encode()
HEADERLESS = {"header": False, "columns": {"text": 0, "label": 1}}

SOURCES: dict[str, tuple[Callable[[Path], str], tuple[str, ...], dict]] = {
    "csv": (lambda folder: _write(folder / "a.csv", _csv()), ROLES[0], {}),
    "csv utf-16": (
        lambda folder: _write(folder / "a.csv", _csv().decode("utf-8-sig").encode("utf-16")),
        ROLES[0],
        {"encoding": "utf-16"},
    ),
    "csv gzip": (lambda folder: _write(folder / "a.csv.gz", gzip.compress(_csv())), ROLES[0], {}),
    "several csv": (_several_csv, ROLES[0], {}),
    "tsv": (lambda folder: _write(folder / "a.tsv", _lines(_tsv_line)), ROLES[0], HEADERLESS),
    "jsonl": (lambda folder: _write(folder / "a.jsonl", _lines(_json_line)), ROLES[0], {}),
    "jsonl bz2": (lambda folder: _write(folder / "a.jsonl.bz2", bz2.compress(_lines(_json_line))), ROLES[0], {}),
    "json": (lambda folder: _write(folder / "a.json", JSON_LIST), ROLES[0], {}),
    "text": (lambda folder: _write(folder / "a.txt", _lines(lambda number: f"{number} \u00e4")), ("text",), {}),
    "text by a pattern": (
        lambda folder: _write(folder / "a.txt", _lines(lambda number: f"{number % 3}:x \u00e4 {number}")),
        ROLES[0],
        {"pattern": PATTERN},
    ),
    "json of lists": (_split_file, ROLES[0], {"rows": "of.train", "columns": {"text": 0, "label": 1}}),
    "json lines called json": (lambda folder: _write(folder / "a.json", _lines(_json_line)), ROLES[0], {}),
    "jsonl by paths": (
        lambda folder: _write(folder / "a.jsonl", _lines(_json_path)),
        ROLES[0],
        {"columns": {"text": "{row.text.0}!"}, "set": {"label": "{file}"}},
    ),
    "parquet": (_parquet, ROLES[0], {}),
    "parallel": (_parallel, ("source", "target"), {}),
    "conll": (lambda folder: _write(folder / "a.conll", CONLL), ("words", "tags"), {}),
    "idx": (_idx, ("image", "label"), {}),
    "image_folder": (_images, ("image", "label"), {}),
    "hub": (_hub, ROLES[0], {"format": "hub"}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_reading_goes_on_after_a_position_with_exactly_the_remaining_rows(tmp_path, name):
    make, role, settings = SOURCES[name]
    source = SourceConfig(path=make(tmp_path), **settings)
    items = list(open_stream(source, roles=(role,), position=None))
    rows = [row for row, _ in items]
    assert len(rows) == NUM_ROWS
    assert rows == list(read_rows(source, roles=(role,)))
    assert len({row["_where"] for row in rows}) == NUM_ROWS
    for cut in (1, 2, 7, 9, 14, NUM_ROWS - 1, NUM_ROWS):
        saved = json.loads(json.dumps(items[cut - 1][1]))
        rest = list(open_stream(source, roles=(role,), position=saved))
        assert rest == items[cut:], cut


NOT_LOOKED_AT = ("csv", "tsv", "jsonl", "jsonl by paths", "text", "text by a pattern", "parquet", "parallel", "conll")


@pytest.mark.parametrize("name", NOT_LOOKED_AT)
def test_nothing_before_the_position_is_looked_at(tmp_path, name):
    make, role, settings = SOURCES[name]
    source = SourceConfig(path=make(tmp_path), **settings)
    items = list(open_stream(source, roles=(role,), position=None))
    cut = 14  # the second row group of Parquet ends here
    stream = open_stream(source, roles=(role,), position=items[cut - 1][1])
    for path in sources.source_files(source):
        _spoil(path, items[0][1], items[cut - 1][1])
    assert list(stream) == items[cut:]


def _spoil(path: Path, first: dict, last: dict) -> None:
    """Make every byte between two positions one that no text has; of Parquet, every byte of the first row group."""
    if path.suffix == ".parquet":
        column = pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0)
        start, stop = column.dictionary_page_offset or column.data_page_offset, column.data_page_offset + 20
    else:
        part = "source" if path.suffix == ".de" else "target"
        start, stop = (position["place"].get(part, position["place"])["offset"] for position in (first, last))
    content = bytearray(path.read_bytes())
    content[start:stop] = b"\xff" * (stop - start)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["csv", "several csv", "parquet"])
def test_the_limit_counts_from_the_start_also_after_a_resume(tmp_path, name):
    make, role, settings = SOURCES[name]
    path = make(tmp_path)
    rows = list(read_rows(SourceConfig(path=path, **settings), roles=(role,)))
    source = SourceConfig(path=path, limit=12, **settings)
    items = list(open_stream(source, roles=(role,), position=None))
    assert [row for row, _ in items] == rows[:12]
    assert list(open_stream(source, roles=(role,), position=items[9][1])) == items[10:]
    assert list(open_stream(source, roles=(role,), position=items[11][1])) == []


def test_a_position_beyond_the_files_is_refused(tmp_path):
    source = SourceConfig(path=_several_csv(tmp_path))
    position = list(open_stream(source, roles=ROLES, position=None))[-1][1]
    (tmp_path / "3.csv").unlink()
    with pytest.raises(UserError, match="has fewer files than when the position was saved"):
        next(open_stream(source, roles=ROLES, position=position))


def test_an_empty_file_among_others_is_passed_over(tmp_path):
    (tmp_path / "1.csv").write_text("")
    (tmp_path / "2.csv").write_text("text,label\na,1\n")
    rows = list(read_rows(SourceConfig(path=f"{tmp_path}/*.csv"), roles=ROLES))
    assert [row["_where"] for row in rows] == [f"{tmp_path}/2.csv:2"]


def test_remote_files_are_read_and_resumed(tmp_path):
    remote = fsspec.filesystem("memory")
    remote.pipe({"/rows/1.csv": _csv(0, 9), "/rows/2.csv": _csv(9)})
    try:
        source = SourceConfig(path="memory://rows/*.csv")
        items = list(open_stream(source, roles=ROLES, position=None))
        assert [row["text"] for row, _ in items] == TEXTS
        assert list(open_stream(source, roles=ROLES, position=items[11][1])) == items[12:]
        before = source_fingerprint(source)
        remote.pipe("/rows/2.csv", _csv(9, 20))
        assert source_fingerprint(source) != before
    finally:
        remote.rm("/rows", recursive=True)


class _RangeHandler(SimpleHTTPRequestHandler):
    """Serves parts of files, as real servers of data do."""

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        start, stop = 0, len(content)
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            start, stop = int(first), int(last) + 1
        part = content[start:stop]
        self.send_response(206 if span else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_RangeHandler, directory=str(tmp_path))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize("name", ["csv", "csv gzip", "jsonl", "parquet"])
def test_files_of_a_web_server_are_read_and_resumed(tmp_path, server, name):
    path = Path(SOURCES[name][0](tmp_path))
    local = [row for row, _ in open_stream(SourceConfig(path=str(path)), roles=ROLES, position=None)]
    source = SourceConfig(path=f"{server}/{path.name}")
    items = list(open_stream(source, roles=ROLES, position=None))
    for row in local:
        row["_where"] = row["_where"].replace(str(tmp_path), server)
    assert [row for row, _ in items] == local
    assert list(open_stream(source, roles=ROLES, position=items[11][1])) == items[12:]


def test_remote_lines_are_not_asked_for_one_by_one(tmp_path, server, monkeypatch):
    lines = "".join(f'{{"text": "row {number}", "label": 1}}\n' for number in range(20_000))
    _write(tmp_path / "a.jsonl", lines.encode())
    read, calls = fsspec.spec.AbstractBufferedFile.read, list[int]()
    monkeypatch.setattr(
        fsspec.spec.AbstractBufferedFile, "read", lambda file, length=-1: calls.append(length) or read(file, length)
    )
    assert sum(1 for _ in read_rows(SourceConfig(path=f"{server}/a.jsonl"), roles=ROLES)) == 20_000
    assert 0 < len(calls) < 100


def test_messages_name_the_source_that_the_caller_names(tmp_path):
    path = _write(tmp_path / "a.csv", b"text,label\na\n")
    with pytest.raises(UserError, match=r"^data\.eval\[2\]\.path"):
        list(read_rows(SourceConfig(path=path), roles=ROLES, setting="data.eval[2]"))


def test_the_fingerprint_changes_with_content_and_reading_and_with_nothing_else(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(_csv())
    first = source_fingerprint(SourceConfig(path=str(path)))
    os.utime(path, (1, 1))
    assert source_fingerprint(SourceConfig(path=str(path), weight=3.0)) == first
    (tmp_path / "moved").mkdir()
    moved = path.rename(tmp_path / "moved/a.csv")
    assert source_fingerprint(SourceConfig(path=str(moved))) == first
    settings = (
        {"limit": 3},
        {"columns": {"text": "label"}},
        {"header": False},
        {"format": "tsv"},
        {"encoding": "cp1252"},
        {"set": {"label": "x"}},
        {"columns": {"text": "{text}"}},
        {"columns": {"text": ["text"]}},
    )
    moved_source = [SourceConfig(path=str(moved), **setting) for setting in settings]
    assert len({first, *map(source_fingerprint, moved_source)}) == 1 + len(settings)
    moved.write_bytes(_csv().replace(b"row 7", b"row 8"))
    assert source_fingerprint(SourceConfig(path=str(moved))) != first


def test_a_large_source_is_known_by_size_and_time_of_change(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    path.write_bytes(_csv())
    monkeypatch.setattr(hashing, "HASHED_WHOLE_BYTES", 10)
    os.utime(path, ns=(1, 1))
    first = source_fingerprint(SourceConfig(path=str(path)))
    os.utime(path, ns=(2, 1))
    assert source_fingerprint(SourceConfig(path=str(path))) == first
    os.utime(path, ns=(1, 2))
    assert source_fingerprint(SourceConfig(path=str(path))) != first


def test_the_fingerprint_of_images_changes_with_their_class(tmp_path):
    source = SourceConfig(path=_images(tmp_path))
    first = source_fingerprint(source)
    (tmp_path / "class2").rename(tmp_path / "class3")
    assert source_fingerprint(source) != first


@pytest.mark.parametrize("large", [False, True])
def test_images_that_rows_name_count_with_the_file_that_names_them(tmp_path, monkeypatch, large):
    if large:
        monkeypatch.setattr(hashing, "HASHED_WHOLE_BYTES", 0)
    (tmp_path / "pictures").mkdir()
    first, other = tmp_path / "pictures/a.png", tmp_path / "pictures/b.png"
    first.write_bytes(b"one")
    other.write_bytes(b"two")
    source = SourceConfig(path=_write(tmp_path / "a.csv", b"image,label\npictures/a.png,x\npictures/b.png,y\n"))
    roles = (("image", "label"),)
    before, files = source_fingerprint(source, roles=roles), file_fingerprints(source, roles=roles)
    assert files.keys() == {source.path, str(first), str(other)}
    other.write_bytes(b"2wo")
    assert source_fingerprint(source, roles=roles) != before
    after = file_fingerprints(source, roles=roles)
    assert {path for path in files if files[path] != after[path]} == {str(other)}
    other.write_bytes(b"two")
    if not large:
        assert source_fingerprint(source, roles=roles) == before
