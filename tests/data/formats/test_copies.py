"""Copies of remote files: fetched once, and further where that was broken off."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import tiny

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.config.schema import SourceConfig
from ftscale.data.formats import copies
from ftscale.data.formats.copies import copies_in
from ftscale.data.sources import read_rows
from ftscale.run.prepared_data import prepare_inputs

TEXTS = [f"row {number} {'x' * 90}" for number in range(2000)]
CSV = ("text,label\n" + "".join(f"{text},{number % 2}\n" for number, text in enumerate(TEXTS))).encode()
pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def server(failing_server, monkeypatch):
    """A server of a file of CSV, which is asked for 64 KiB at a time."""
    monkeypatch.setattr(fsspec.filesystem("http"), "block_size", 2**16)
    monkeypatch.setattr(copies, "BLOCK", 2**12)
    failing_server.content = CSV
    return failing_server


def texts(url: str, folder: Path | None) -> list[str]:
    with copies_in(folder):
        return [row["text"] for row in read_rows(SourceConfig(path=url), roles=(("text", "label"),))]


def whole(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.iterdir() if not path.suffix)


@pytest.mark.parametrize("has_parts", [True, False])
def test_a_file_is_fetched_once_and_again_when_it_is_another(server, tmp_path, has_parts):
    server.has_parts = has_parts
    assert texts(f"{server.url}/a.csv?token=one", tmp_path / "remote") == TEXTS
    asked = len(server.asked)
    assert texts(f"{server.url}/a.csv?token=two", tmp_path / "remote") == TEXTS
    assert len(server.asked) == asked
    assert whole(tmp_path / "remote") == [CSV]
    server.etag, server.content = "two", CSV.replace(b"row", b"now")
    assert texts(f"{server.url}/a.csv", tmp_path / "remote")[0].startswith("now 0")
    assert len(whole(tmp_path / "remote")) == 2


@pytest.mark.parametrize("has_parts", [True, False])
def test_what_was_broken_off_is_fetched_further_and_never_read_in_half(server, tmp_path, has_parts):
    server.has_parts = has_parts
    server.statuses = [0, 0] + [503] * 20
    server.cuts = [-1, 0] if has_parts else [100_000, 0]
    with pytest.raises(UserError, match=r"a\.csv broke off at byte \d+ .* go on with --resume"):
        texts(f"{server.url}/a.csv", tmp_path)
    [part] = tmp_path.glob("*.part")
    begun = part.stat().st_size
    assert CSV.startswith(part.read_bytes())
    assert whole(tmp_path) == []
    server.statuses, server.cuts, server.asked = [], [], []
    assert texts(f"{server.url}/a.csv", tmp_path) == TEXTS
    assert whole(tmp_path) == [CSV]
    assert list(tmp_path.glob("*.part")) == []
    assert 0 < begun < len(CSV)
    assert not has_parts or server.asked[0].startswith(f"bytes={begun}-")


def test_a_copy_of_another_size_is_fetched_anew(server, tmp_path):
    assert texts(f"{server.url}/a.csv", tmp_path) == TEXTS
    [copy] = (path for path in tmp_path.iterdir() if not path.suffix)
    copy.write_bytes(CSV[:5000])
    assert texts(f"{server.url}/a.csv", tmp_path) == TEXTS


def test_prepared_rows_come_from_the_copy_and_streamed_ones_from_the_network(shared, server, tmp_path):
    def run(**data: object) -> None:
        data = {"train": f"{server.url}/a.csv", "cache_dir": str(tmp_path), **data}
        prepare_inputs(parse_config(tiny.settings(shared, tmp_path, data=data), source="x"))

    run(streaming=True, train={"path": f"{server.url}/a.csv", "limit": 4})
    assert not (tmp_path / "remote").exists()
    run(train={"path": f"{server.url}/a.csv", "limit": 4})
    assert whole(tmp_path / "remote") == [CSV]
