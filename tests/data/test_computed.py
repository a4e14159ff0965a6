"""The cache of computed columns: whole or not there, and one for all that want it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ftscale.data.computed import column_digest, column_folder, is_whole, new_column, read_column


def write(folder: Path, values: np.ndarray) -> None:
    with new_column(folder, len(values)) as column:
        for numbers in (np.array([1, 2]), np.array([0])):
            column.put(numbers, values[numbers])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepared = tmp_path / "abc"
    prepared.mkdir()
    return column_folder(prepared, name="features", digest=column_digest({"a": 1}))


VALUES = np.array([[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]], dtype=np.float32)


def test_what_was_put_is_read(folder: Path):
    assert not is_whole(folder)
    write(folder, VALUES)
    assert is_whole(folder)
    assert read_column(folder).dtype == np.float32
    assert (read_column(folder) == VALUES).all()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_the_digest_follows_from_what_it_is_told():
    assert column_digest({"a": 1, "b": 2}) == column_digest({"b": 2, "a": 1}) != column_digest({"a": 1, "b": 3})


def test_an_error_in_the_middle_leaves_nothing_that_is_read(folder: Path):
    def broken() -> None:
        with new_column(folder, 3) as column:
            column.put(np.array([0]), VALUES[:1])
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not is_whole(folder)
    assert list(folder.parent.glob(".*")) == []


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(folder: Path):
    left = folder.with_name(f".{folder.name}.0123456789abcdef.partial")
    left.mkdir()
    (left / "values.npy").write_bytes(b"half")
    with new_column(folder, 3) as living:
        living.put(np.arange(3), VALUES)
        assert not left.exists()
        write(folder, VALUES)  # another run, which is ready first
        assert living.file is not None
        assert living.file.is_file()
    assert (read_column(folder) == VALUES).all()
    assert list(folder.parent.glob(".*")) == []


@pytest.mark.parametrize("damage", ["values.npy", "report.json"])
def test_a_damaged_column_is_none_and_is_written_anew(folder: Path, damage: str):
    write(folder, VALUES)
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_whole(folder)
    write(folder, VALUES)
    assert is_whole(folder)


def test_samples_of_two_shapes_are_refused(folder: Path):
    with new_column(folder, 3) as column:
        column.put(np.array([0]), VALUES[:1])
        with pytest.raises(ValueError, match="shape"):
            column.put(np.array([1]), np.zeros((1, 3), dtype=np.float32))
