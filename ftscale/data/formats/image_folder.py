"""Image folders: the class of an image is the name of the folder that it lies in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from ftscale.data.formats.base import DataFile, Place, Record
from ftscale.data.formats.paths import files_below

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def images(folder: str) -> list[str]:
    """Every image under a folder, as sorted paths relative to it with /; hidden files and folders are left out."""
    return [file for file in files_below(folder, hidden=(".",)) if file.lower().endswith(SUFFIXES)]


def columns(file: DataFile) -> tuple[str, ...]:
    """The columns image and label; image alone where an image lies outside any class folder."""
    return ("image", "label") if all("/" in image for image in images(file.path)) else ("image",)


def records(file: DataFile, *, place: Place | None, wanted: Sequence[int]) -> Iterator[Record]:
    """One record an image: its path relative to the folder, its class. A place is `{"record": n}`."""
    start = place["record"] if place else 0
    for number, image in enumerate(images(file.path)[start:], start + 1):
        values = (image, image.partition("/")[0])
        yield [values[column] for column in wanted], os.path.join(file.path, image), {"record": number}
