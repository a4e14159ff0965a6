"""Hub data sets, here as a local folder that `datasets` opens in the same way."""

from __future__ import annotations

import io

import datasets
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path) -> str:
    picture = io.BytesIO()
    Image.new("L", (2, 2)).save(picture, format="PNG")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = {
        "image": [{"bytes": picture.getvalue(), "path": None}] * 3,
        "label": [1, 0, -1],
        "tags": [[0, 1], [], [1]],
    }
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
    return str(tmp_path / "data")


def test_class_numbers_become_names_and_images_stay_encoded(folder, read):
    rows = read(folder, ("image", "label", "tags"), format="hub")
    assert [row["label"] for row in rows] == ["dog", "cat", None]
    assert [row["tags"] for row in rows] == [["O", "B-X"], [], ["B-X"]]
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (2, 2)


def test_a_split_that_does_not_exist_is_refused(folder, refused):
    message = refused(folder, ("label",), format="hub", split="trai")
    assert "correct data.train[0].path, name or split" in message
