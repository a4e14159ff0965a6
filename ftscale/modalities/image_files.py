"""Image files opened with the formats that the documentation names, up to a number of pixels."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from ftscale.base.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats by whose endings image folders are known, and of JPEGs of 16 bits; no other is tried,
whatever a name ends in: of EPS, Pillow starts a PostScript interpreter."""

BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)


class UnreadableImage(UserError):
    """An image that is damaged, of another format or not there; a source may leave its row out."""


@contextmanager
def opened_image(path: str, data: bytes, *, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """The image of a path, or else of its encoded bytes, not decoded yet; `name`: what errors call it.

    Raises UserError, inside the `with` too, for more pixels, and UnreadableImage for what is no image of these formats
    and for a file that is none (a pipe, a device).
    """
    try:
        with _at_most(max_pixels):
            if path:
                _check_regular(path)
            yield Image.open(path if path else io.BytesIO(data), formats=FORMATS)
    except BOMBS as error:
        found = re.search(r"\d+", str(error))
        raise UserError(
            f"{name}: the image has {found.group() if found else 'more'} pixels, and task.max_pixels = {max_pixels} is "
            "the most; make it smaller, or raise task.max_pixels."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(
            f"{name}: not a readable image ({error}); save it as one of {', '.join(FORMATS)}, or mend or remove the "
            "file."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UnreadableImage(f"{name}: not a readable image ({error}); mend or remove the file.") from error


@contextmanager
def _at_most(max_pixels: int) -> Iterator[None]:
    """Pillow's own limit, at which it warns, and raises at twice as many; here the warning is an error too."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_regular(path: str) -> None:
    """Raise OSError for what would be waited for, or never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{path!r} is no regular file")
