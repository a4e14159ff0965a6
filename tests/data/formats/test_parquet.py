"""Parquet."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet
import pytest

from ftscale.base.errors import UserError
from ftscale.config.schema import SourceConfig
from ftscale.data.sources import read_rows


def test_rows_have_python_values_and_their_number_in_the_file(tmp_path, read):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"n": [1, 2, 3], "messages": [["a"], ["b", "c"], None], "unread": [b"", b"", b""]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    assert read(path, ("messages", "n")) == [
        {"messages": ["a"], "n": 1, "_where": f"{path} row 1"},
        {"messages": ["b", "c"], "n": 2, "_where": f"{path} row 2"},
        {"messages": None, "n": 3, "_where": f"{path} row 3"},
    ]


def test_images_stored_by_datasets_come_as_bytes(tmp_path, read):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [{"bytes": b"P5", "path": "x.pgm"}], "label": [1]}), path)
    assert read(path, ("image", "label"))[0]["image"] == b"P5"


def test_a_file_that_is_not_parquet_is_refused(tmp_path, refused):
    path = tmp_path / "a.parquet"
    path.write_text("text,label\n")
    assert f"{path} is damaged or not Parquet" in refused(path)


def test_a_missing_column_is_refused_with_all_that_there_are(tmp_path, refused):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "category": [1]}), path)
    message = refused(path, columns={"label": "categry"})
    assert "data.train[0].columns.label = 'categry' is not a column" in message
    assert "the columns 'text', 'category'; did you mean 'category'?" in message


@pytest.mark.parametrize("around", ["nothing", "struct", "list", "map"])
def test_one_large_text_in_a_thousand_rows_of_a_small_file_is_refused_before_the_first(tmp_path, around):
    """32 of them at once would be 288 MB of Python's strings, all of them 9 GB."""
    path, number = tmp_path / "a.parquet", 1000
    indices = pyarrow.array([0] * number, pyarrow.int32())
    texts = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["x" * 9_000_000]))
    ends = pyarrow.array(range(number + 1), pyarrow.int32())
    column = {
        "nothing": lambda: texts,
        "struct": lambda: pyarrow.StructArray.from_arrays([texts], names=["a"]),
        "list": lambda: pyarrow.ListArray.from_arrays(ends, texts),
        "map": lambda: pyarrow.MapArray.from_arrays(ends, pyarrow.array(["k"] * number), texts),
    }[around]()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd")
    assert path.stat().st_size < 4000
    with pytest.raises(UserError, match="unpacks to more than 268435456 bytes of large rows, more than 200 times its"):
        next(read_rows(SourceConfig(path=str(path)), roles=(("text",),)))


def test_pages_that_unpack_to_very_much_are_refused_before_they_are_read(tmp_path, refused):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["x" * 9_000_000] * 30})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 20_000
    assert "bytes in a row group, more than 200 times its size; if that is right, write it as JSON" in refused(
        path, ("text",)
    )


def test_millions_of_rows_in_a_small_file_are_refused(tmp_path, refused):
    path = tmp_path / "a.parquet"
    numbers = pyarrow.nulls(10_000_001, pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": numbers}), path, row_group_size=10_000_001)
    assert "unpacks to 10000001 rows, more than 200 times its size" in refused(path, ("text",))


def test_a_prompt_that_stands_in_every_row_is_read(tmp_path, read):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p" * 20_000] * 20_000}), path, compression="zstd")
    assert path.stat().st_size * 200 < 20_000 * 20_000
    rows = read(path, ("text",))
    assert len(rows) == 20_000
    assert rows[-1] == {"text": "p" * 20_000, "_where": f"{path} row 20000"}
