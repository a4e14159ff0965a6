"""Remote files: connections that break, servers that refuse, and files that change."""

from __future__ import annotations

import gzip
import io
import re
import socket
import zipfile

import fsspec
import openpyxl
import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import copies, remote
from ftscale.data.sources import detect_format, open_stream, source_fingerprint

ROLES = (("text", "label"),)
TEXTS = [f"row {number} {'x' * 90}" for number in range(2000)]
CSV = ("text,label\n" + "".join(f"{text},1\n" for text in TEXTS)).encode()
pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def server(failing_server):
    """A server of a file of CSV."""
    failing_server.content = CSV
    return failing_server


def read(url: str, **settings: object) -> list[str]:
    stream = open_stream(SourceConfig(path=url, **settings), roles=ROLES, position=None)
    return [row["text"] for row, _ in stream]


def refusal(url: str, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        read(url, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("has_parts", "cuts", "waits"),
    [(True, [-1, 1000, -1, 30_000, 0], [1, 1, 2]), (False, [-1, -1, 100_000, 0], [1, 2])],  # parts are tried first
    ids=["parts", "whole"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_connection_that_breaks_in_the_middle_is_gone_on_with(
    server, no_waiting, has_parts, cuts, waits, packed, monkeypatch, caplog
):
    monkeypatch.setattr(fsspec.filesystem("http"), "block_size", 2**16)
    monkeypatch.setattr(copies, "BUFFER", 2**14)
    lines = "\n".join(TEXTS).encode()
    server.content = gzip.compress(lines, compresslevel=0) if packed else lines
    server.has_parts, server.cuts = has_parts, [*cuts]
    rows = open_stream(SourceConfig(path=f"{server.url}/a.txt"), roles=(("text",),), position=None)
    assert [row["text"] for row, _ in rows] == TEXTS
    assert (server.cuts, no_waiting) == ([], waits)
    assert re.search(r"/a\.txt: ContentLengthError: .*; trying again in 1 s", caplog.text)


@pytest.mark.parametrize("has_parts", [True, False])
def test_reading_goes_on_after_a_row(server, has_parts):
    server.has_parts = has_parts
    source = SourceConfig(path=f"{server.url}/a.csv")
    items = list(open_stream(source, roles=ROLES, position=None))
    assert list(open_stream(source, roles=ROLES, position=items[1500][1])) == items[1501:]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_answer_that_may_be_another_one_later_is_waited_for(server, no_waiting, status):
    server.statuses = [status, status]
    assert read(f"{server.url}/a.csv") == TEXTS
    assert no_waiting == [1.0, 2.0]


@pytest.mark.parametrize("status", [404, 403])
def test_a_refusal_is_told_at_once(server, no_waiting, status):
    server.statuses = [status] * 9
    message = refusal(f"{server.url}/a.csv?token=t0k3n")
    assert message == (
        f"data.train[0].path: {server.url}/a.csv?token=<secret> cannot be read: its server is not there, has no such "
        "file, or refuses this name, password or token; correct the URL."
    )
    assert no_waiting == []


def test_what_stays_broken_ends_with_the_place_the_cause_and_the_way_on(server, no_waiting, monkeypatch):
    monkeypatch.setattr(fsspec.filesystem("http"), "block_size", 2**16)
    server.statuses = [0] + [502] * 20
    server.has_parts = False
    server.cuts = [100_000]
    message = refusal(f"{server.url}/a.csv?token=t0k3n")
    assert "t0k3n" not in message
    assert re.fullmatch(
        rf"data\.train\[0\]\.path: {server.url}/a\.csv\?token=<secret> broke off at byte \d+ \(ClientResponseError: "
        r"status 502\), and 7 further tries did not help; when the network is well again, go on with --resume from the "
        r"last checkpoint\. \d+ rows of the source came before\.",
        message,
    )
    assert no_waiting[-7:] == list(remote.WAITS_S)


def test_a_file_that_is_shorter_than_was_said_is_refused(server):
    server.claims = 50
    assert "further tries did not help" in refusal(f"{server.url}/a.csv")


def test_a_file_that_changes_between_two_reads_is_refused(server):
    server.has_parts = False
    server.cuts = [-1, -1, 100_000]  # columns are looked at twice
    server.changes_after = 2
    assert "/a.csv has changed while it was read; begin again" in refusal(f"{server.url}/a.csv")


def test_the_fingerprint_of_a_remote_file_changes_with_what_its_server_tells(server):
    source = SourceConfig(path=f"{server.url}/a.csv")
    first = source_fingerprint(source)
    assert source_fingerprint(source) == first
    server.etag = "two"
    assert source_fingerprint(source) != first


def test_workbooks_and_files_in_archives_are_read_from_a_server(server):
    book, made = openpyxl.Workbook(), io.BytesIO()
    for row in (("text", "label"), ("fine", 1)):
        book.active.append(row)
    book.save(made)
    server.content = made.getvalue()
    assert read(f"{server.url}/a.xlsx") == ["fine"]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/a.csv", CSV)
        archive.writestr("in/b.csv", CSV)
    server.content = made.getvalue()
    assert f"is an archive; name a file in it: zip://train.csv::{server.url}/a.zip" in refusal(f"{server.url}/a.zip")
    assert detect_format(f"zip://a.csv::{server.url}/a.zip") == "csv"
    assert read(f"zip://in/a.csv::{server.url}/b.zip") == TEXTS
    assert read(f"zip://in/*.csv::{server.url}/b.zip") == TEXTS * 2


def test_any_file_system_of_fsspec_is_read_by_its_patterns(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/rows/1.csv": CSV, "/rows/2.csv.gz": gzip.compress(CSV)})
    try:
        assert read("memory://rows/*.csv*") == TEXTS * 2
        assert read("memory://rows/", format="csv") == TEXTS * 2
        assert "matches no remote file" in refusal("memory://rows/*.tsv")
        assert "memory://rows/3.csv cannot be read" in refusal("memory://rows/3.csv")
    finally:
        memory.rm("/rows", recursive=True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket/a.csv", "needs a package for s3:// that is not installed; pip install s3fs."),
        ("gs://bucket/*.csv", "needs a package for gs:// that is not installed; pip install gcsfs."),
        ("nosuch://bucket/a.csv", "cannot be read (Protocol not known: nosuch"),
    ],
)
def test_a_scheme_without_its_package_is_refused_with_what_to_install(monkeypatch, url, words):
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    assert f"data.train[0].path: {url} {words}" in refusal(url)


def test_a_server_that_is_not_there_is_told_at_once(no_waiting):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.csv"
    assert "cannot be read: its server is not there" in refusal(url)
    assert "cannot be read: its server is not there" in refusal("hf://datasets/nobody/nothing/a.csv")
    assert no_waiting == []
