"""Image files of the documented formats, up to a number of pixels; nothing else is opened."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from ftscale.base.errors import UserError
from ftscale.config.tasks.image_classification import ImageClassificationSettings
from ftscale.data.formats.image_folder import SUFFIXES
from ftscale.modalities.image_files import FORMATS
from ftscale.tasks.image_classification import ImageClassification

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def prepare(image, **settings):
    task = ImageClassification(ImageClassificationSettings(labels=("blue", "red"), **settings))
    return task.prepare([{"image": image, "label": "red", "_where": "list.csv:4"}])


def png(width: int, height: int, *, rows: int | None = None) -> bytes:
    """A black image of one bit a pixel, of all its rows or the first, written by hand after RFC 2083."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((height if rows is None else rows) * (1 + min((width + 7) // 8, 10_000))), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(13_000, 13_000), (8_001, 8_000), (30_000, 30_000), (2**31 - 1, 1)])
def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int):
    path = tmp_path / "large.png"
    path.write_bytes(png(width, height, rows=height if width == 13_000 else 1))
    assert path.stat().st_size < 30_000
    with pytest.raises(UserError) as caught:
        prepare(str(path))
    assert str(caught.value) == (
        f"{path}: the image has {width * height} pixels, and task.max_pixels = 64000000 is the most; make it smaller, "
        "or raise task.max_pixels."
    )


def test_the_limit_is_a_setting_above_pillows_own_too(monkeypatch: pytest.MonkeyPatch):
    assert prepare(png(40, 25), max_pixels=1000)[0].label == 1
    with pytest.raises(UserError, match="list.csv:4: the image has 1040 pixels, and task.max_pixels = 1000"):
        prepare(png(40, 26), max_pixels=1000)
    with pytest.raises(UserError, match="list.csv:4: the image has 1040 pixels, and task.max_pixels = 1000"):
        prepare(Image.new("RGB", (40, 26)), max_pixels=1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # at which Pillow warns, and at 200 it raises
    assert prepare(png(40, 25), max_pixels=1000)[0].label == 1
    assert Image.MAX_IMAGE_PIXELS == 100


def test_postscript_is_not_opened_whatever_its_name(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(EPS)
    assert Image.open(path).format == "EPS"  # what Pillow makes of it when it is asked for any format
    with pytest.raises(UserError, match=r"picture\.png: not a readable image .*; save it as one of BMP, GIF, JPEG"):
        prepare(str(path))
    with pytest.raises(UserError, match=r"list\.csv:4: not a readable image"):
        prepare(EPS)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "TGA", "ICNS", "SGI", "DDS", "MSP"])
def test_formats_that_no_page_names_are_refused(kind: str):
    buffer = io.BytesIO()
    Image.new("1" if kind == "MSP" else "RGB", (16, 16)).save(buffer, kind)
    with pytest.raises(UserError, match=r"list\.csv:4: not a readable image"):
        prepare(buffer.getvalue())


def test_every_ending_of_an_image_folder_is_of_a_format_that_is_opened():
    endings = Image.registered_extensions()  # Pillow's own table
    assert {endings[suffix] for suffix in SUFFIXES} == set(FORMATS) - {"JPEG2000"}
    for suffix in SUFFIXES:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), 200).save(buffer, endings[suffix])
        assert prepare(buffer.getvalue())[0].label == 1


def test_the_two_pictures_in_one_file_of_a_phone_are_a_jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert prepare(buffer.getvalue())[0].label == 1


def test_a_pipe_and_a_device_are_no_images(tmp_path: Path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    link = tmp_path / "link.png"
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=r"not a readable image \('.*' is no regular file\); mend or remove"):
            prepare(str(path))
