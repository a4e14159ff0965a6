"""IDX, the format of MNIST: a file of grey images and a file of labels beside it.

Source: http://yann.lecun.com/exdb/mnist/, "The IDX file format".
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import BinaryIO

from ftscale.base.errors import counted
from ftscale.data.formats.archives import exists
from ftscale.data.formats.base import DataFile, Place, Record, open_bytes

IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801  # unsigned bytes in 3 dimensions, in 1
IMAGES_HEADER, LABELS_HEADER = 16, 8  # bytes
MOST_PIXELS = 2**24  # of one image, which is read at once, whatever size the header gives it; MNIST has 784
BLOCK_BYTES = 2**20
IMAGES_NAME = re.compile(r"images([.-])idx3")


def labels_path(path: str) -> str:
    """The labels file that belongs to an images file."""
    folder, name = os.path.split(path)
    return os.path.join(folder, IMAGES_NAME.sub(r"labels\1idx1", name))


def columns(file: DataFile) -> tuple[str, ...]:
    """The columns image and label; image alone where there is no labels file."""
    with open_bytes(file) as stream:
        _header(file, stream, file.path, magic=IMAGES_MAGIC, dimensions=3)
    labels = labels_path(file.path)
    return ("image", "label") if labels != file.path and exists(labels, setting=file.setting) else ("image",)


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record an image: the bytes of a PGM file, which Pillow opens, and the label as a string.

    A place is `{"record": n}`.
    """
    start = place["record"] if place else 0
    with ExitStack() as stack:
        stream = stack.enter_context(open_bytes(file))
        count, height, width = _header(file, stream, file.path, magic=IMAGES_MAGIC, dimensions=3)
        if height * width > MOST_PIXELS:
            raise file.error(f"has images of {height} x {width} pixels, and {MOST_PIXELS} are the most; name another.")
        if not height * width:
            raise file.error(f"has images of {height} x {width} pixels; copy or download it again.")
        stream.seek(IMAGES_HEADER + start * height * width)
        labels = None
        if 1 in wanted:
            path = labels_path(file.path)
            labels = stack.enter_context(open_bytes(file, path=path))
            (num_labels,) = _header(file, labels, path, magic=LABELS_MAGIC, dimensions=1)
            if num_labels != count:
                raise file.error(
                    f"has {counted(num_labels, 'label')} for {counted(count, 'image')}; use files of one set.",
                    path=path,
                )
            labels.seek(LABELS_HEADER + start)
        pgm_header = b"P5 %d %d 255\n" % (width, height)
        for number in range(start + 1, count + 1):
            pixels = _take(file, stream, height * width, number)
            values = (pgm_header + pixels, str(_take(file, labels, 1, number)[0]) if labels else "")
            yield [values[column] for column in wanted], f"{file.path} row {number}", {"record": number}


def _header(file: DataFile, stream: BinaryIO, path: str, *, magic: int, dimensions: int) -> tuple[int, ...]:
    header = stream.read(4 + 4 * dimensions)
    if len(header) != 4 + 4 * dimensions or header[:4] != struct.pack(">I", magic):
        raise file.error(f"is no IDX file of bytes in {dimensions} dimensions; name the images file.", path=path)
    return struct.unpack(f">{dimensions}I", header[4:])


def _take(file: DataFile, stream: BinaryIO, size: int, number: int) -> bytes:
    content = bytearray()
    # block by block: a damaged header may ask for more than there is memory
    while block := stream.read(min(size - len(content), BLOCK_BYTES)):
        content += block
    if len(content) != size:
        raise file.error(f"ends inside row {number}; copy or download it again.")
    return bytes(content)
