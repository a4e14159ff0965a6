"""IDX."""

from __future__ import annotations

import io
import struct
from collections import Counter

import numpy as np
from PIL import Image

ROLES = ("image", "label")


def _write(folder, *, pixels: np.ndarray, labels: list[int] | None) -> str:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())
    if labels is not None:
        content = struct.pack(">2I", 0x801, len(labels)) + bytes(labels)
        (folder / "train-labels-idx1-ubyte").write_bytes(content)
    return str(path)


def test_pillow_opens_the_images_and_finds_every_pixel(tmp_path, read):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    rows = read(_write(tmp_path, pixels=pixels, labels=[7, 0, 9]), ROLES)
    assert [row["label"] for row in rows] == ["7", "0", "9"]
    opened = [np.asarray(Image.open(io.BytesIO(row["image"]))) for row in rows]
    assert np.array_equal(opened, pixels)


def test_images_alone_will_do_where_no_label_is_needed(tmp_path, read, refused):
    path = _write(tmp_path, pixels=np.zeros((2, 1, 1), np.uint8), labels=None)
    assert [sorted(row) for row in read(path, ROLES, absent={"label"})] == [["_where", "image"]] * 2
    assert "put the labels file" in refused(path, ROLES)


def test_wrong_files_are_refused(tmp_path, refused):
    path = _write(tmp_path, pixels=np.zeros((2, 2, 2), np.uint8), labels=[1])
    assert "train-labels-idx1-ubyte has 1 label for 2 images" in refused(path, ROLES)
    content = _write(tmp_path, pixels=np.zeros((2, 2, 2), np.uint8), labels=[1, 2])
    with open(content, "r+b") as stream:
        stream.truncate(16 + 6)
    assert f"{path} ends inside row 2" in refused(path, ROLES)
    labels = tmp_path / "train-labels-idx1-ubyte"
    assert f"{labels} is no IDX file of bytes in 3 dimensions" in refused(labels, ROLES, format="idx")


def test_mnist_has_its_digits(shared, read):
    rows = read(shared / "data/image_classification/mnist_t10k/t10k-images-idx3-ubyte.gz", ROLES)
    counts = Counter(row["label"] for row in rows)
    assert [counts[str(digit)] for digit in range(10)] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (28, 28)
    assert rows[0]["label"] == "7"
