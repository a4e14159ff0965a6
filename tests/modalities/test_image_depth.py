"""Images deeper than 8 bits come out as their 8-bit twins, and modes without a range are refused by name."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from transformers import ViTImageProcessorPil

from ftscale.base.errors import UserError
from ftscale.config.tasks.image_classification import ImageClassificationSettings
from ftscale.tasks.image_classification import ImageClassification

TWIN = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
DEEP = TWIN.astype(np.uint16) * 257  # white is 65535 as it is 255


def pixels(*images: object) -> np.ndarray:
    """What the model sees of the images."""
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    task = ImageClassification(ImageClassificationSettings(labels=("x", "y")), processor)
    samples = task.prepare([{"image": image, "label": "x", "_where": "a.csv:2"} for image in images])
    return task.collate(samples, layout="padded", train=False).inputs["pixel_values"].numpy()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_16_bits(values: np.ndarray, *, colour_type: int) -> bytes:
    """A PNG by its specification: (height, width, channels) uint16."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """A TIFF by its specification, two values in three bytes."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    data = packed.astype(np.uint8).tobytes()
    height, width = values.shape
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 1, 12),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0\0\0\0"


@pytest.mark.parametrize(
    "deep",
    [
        encoded(Image.fromarray(DEEP), "PNG"),
        encoded(Image.fromarray(DEEP), "TIFF"),
        encoded(Image.fromarray(DEEP), "PPM"),
        encoded(Image.fromarray(DEEP), "JPEG2000", irreversible=False),
        encoded(Image.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes()), "TIFF"),
        png_of_16_bits(DEEP[..., None], colour_type=0),
        png_of_16_bits(np.stack([DEEP] * 3, axis=-1), colour_type=2),
        png_of_16_bits(np.stack([DEEP, np.full_like(DEEP, 65535)], axis=-1), colour_type=4),
        png_of_16_bits(np.stack([*[DEEP] * 3, np.full_like(DEEP, 65535)], axis=-1), colour_type=6),
        tiff_of_12_bits((TWIN.astype(np.float64) * 4095 / 255).round().astype(np.uint16)),
        Image.fromarray(DEEP),
    ],
    ids=["png", "tiff", "ppm", "jpeg2000", "big-endian", "grey", "rgb", "grey-alpha", "rgba", "12-bit", "object"],
)
def test_a_deep_image_is_its_8_bit_twin(deep: object):
    found, twin = pixels(deep, encoded(Image.fromarray(TWIN), "PNG"))
    np.testing.assert_array_equal(found, twin)


def test_a_deep_image_that_its_camera_turned_stands_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, twin = (encoded(Image.fromarray(values), "PNG", exif=exif) for values in (DEEP, TWIN))
    np.testing.assert_array_equal(*pixels(turned, twin))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_8_bits_are_what_pillow_makes_of_them(mode: str):
    image = Image.fromarray(np.stack([TWIN, TWIN.T, 255 - TWIN], axis=-1)).convert(mode)
    # Pillow 12 cannot read the plain TIFF of YCbCr that it writes
    given = encoded(image, "JPEG2000", irreversible=False) if mode == "YCbCr" else encoded(image, "TIFF")
    found = pixels(given, encoded(image.convert("RGB"), "PNG"))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        (Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
        (Image.new("LAB", (16, 16)), "TIFF"),
        (Image.fromarray(DEEP.astype(np.float32)), None),
    ],
    ids=["int32", "float32", "lab", "object"],
)
def test_modes_without_a_range_are_refused_by_name_before_training(
    tmp_path: Path, image: Image.Image, kind: str | None
):
    given = image if kind is None else encoded(image, kind)
    with pytest.raises(UserError, match=rf"a.csv:2: not a readable image \(its mode in Pillow is '{image.mode}'"):
        pixels(given)


def test_check_says_which_images_show_nothing(shared: Path, tmp_path: Path):
    for name, values in (("x", TWIN), ("y", TWIN), ("z", TWIN // 20 + 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "images" / name / "a.png")
    Image.fromarray(TWIN.astype(np.uint16) * 3).save(tmp_path / "images" / "y" / "dark.png")  # 12 bits of 16
    settings = tiny.settings(
        shared,
        tmp_path,
        task={"name": "image_classification", "image_size": 32},
        model=str(shared / "weights/mobilenet_v1_0.25_224"),
        data={"train": str(tmp_path / "images"), "cache_dir": str(tmp_path / "cache")},
    )
    checked = tiny.command("check", tiny.write_run(tmp_path, settings), "--json")
    [warning] = [text for text in json.loads(checked.stdout)["warnings"] if "nearly all one" in text]
    assert warning.startswith("data.train: the values of 2 of 4 images looked at are nearly all one, e.g. ")
    assert "dark.png (0 to 3 of 255)" in warning
