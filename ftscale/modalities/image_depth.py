"""Images of any depth to 8 bits a channel: each by its own range, not by Pillow's convert, which cuts off at 255."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

IN_8_BITS = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
"""Pillow's modes with 8 bits a channel or less, of which it makes RGB."""
SIXTEEN_BITS = 2**16 - 1
BITS_PER_SAMPLE = 258  # a tag of TIFF: 12 in an image whose values Pillow gives in 16 bits as they are
NEARLY = 0.99
NEARLY_ONE = 16  # of 255: NEARLY all values within so many


def to_rgb(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel, upright as its camera noted.

    Raises ValueError for modes whose values have no largest one, e.g. floats, and for those that have no colours.
    """
    most = largest_value(image)
    upright = ImageOps.exif_transpose(image)
    if most > 255:
        values = np.asarray(upright).astype(np.float64)
        values *= 255 / most  # in place: of a large image each copy takes 8 bytes a pixel
        upright = Image.fromarray(np.rint(values, out=values).clip(0, 255, out=values).astype(np.uint8))
    return upright.convert("RGB")


def largest_value(image: Image.Image) -> int:
    """The value that stands for white. Raises ValueError, naming the mode, where the mode does not tell."""
    if image.mode in IN_8_BITS:
        return 255
    if image.mode.startswith("I;16"):
        bits = image.getexif().get(BITS_PER_SAMPLE) if image.format == "TIFF" else None
        return 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1 if bits else SIXTEEN_BITS
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow brings both to 16 bits
        return SIXTEEN_BITS
    raise ValueError(
        f"its mode in Pillow is {image.mode!r}, whose values have no range of their own; save it with 8 or 16 bits a "
        "channel"
    )


def value_range(image: Image.Image) -> tuple[int, int]:
    """Between which of 0 to 255 nearly all of its values lie, whatever the colour."""
    edge = 50 * (1 - NEARLY)
    low, high = np.percentile(np.asarray(image.convert("L")), [edge, 100 - edge])
    return int(low), int(high)
