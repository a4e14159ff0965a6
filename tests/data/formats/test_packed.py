"""Compressed files are known by their content, under whatever name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

import pyarrow
import pytest

from ftscale.config.schema import SourceConfig
from ftscale.data.sources import open_stream

CSV = b"text,label\na fine film,1\nan endless mess,0\n"
PACK = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
}
NAMES = ("a.csv", "a.csv.GZ", "A.CSV.xz", "a.csv.bz2", "a.csv.zst")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packing", PACK)
def test_a_compressed_file_is_read_under_any_name(tmp_path, read, packing, name):
    (tmp_path / name).write_bytes(PACK[packing](CSV))
    rows = read(tmp_path / name)
    assert [(row["text"], row["_where"].rpartition(":")[2]) for row in rows] == [
        ("a fine film", "2"),
        ("an endless mess", "3"),
    ]


def test_the_place_in_a_compressed_file_is_a_line_under_any_name(tmp_path):
    for name, content, place in (
        ("a.csv", gzip.compress(CSV), {"line": 2}),
        ("b.csv.gz", CSV, {"line": 2, "offset": len(CSV.partition(b"1\n")[0]) + 2}),
    ):
        (tmp_path / name).write_bytes(content)
        source = SourceConfig(path=str(tmp_path / name))
        items = list(open_stream(source, roles=(("text", "label"),), position=None))
        assert items[0][1]["place"] == place
        assert list(open_stream(source, roles=(("text", "label"),), position=items[0][1])) == items[1:]


def test_compressed_idx_images_are_read_under_their_own_name(tmp_path, read):
    images, labels = struct.pack(">4I", 0x803, 2, 1, 1) + b"ab", struct.pack(">2I", 0x801, 2) + bytes((7, 3))
    (tmp_path / "images-idx3-ubyte").write_bytes(lzma.compress(images))
    (tmp_path / "labels-idx1-ubyte").write_bytes(gzip.compress(labels))
    assert [row["label"] for row in read(tmp_path / "images-idx3-ubyte", ("image", "label"))] == ["7", "3"]


def test_an_empty_bzip2_stream_has_no_rows(tmp_path, refused):
    (tmp_path / "a.csv").write_bytes(bz2.compress(b""))
    assert "has no rows; fill it" in refused(tmp_path / "a.csv")
