"""Parquet."""

from __future__ import annotations

import pyarrow
import pyarrow.parquet


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
