"""Settings of image classification."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from ftscale.config.section import Fraction, Section
from ftscale.config.tasks.base import Capability, ClassNames, Columns


class AugmentationSettings(Section):
    """Random changes of training images, by kornia, seeded by sample and epoch."""

    crop: Fraction = 0.0
    """Random resized crop keeping at least this share of the area; 0 = none."""
    flip: bool = False
    """Mirror left to right with probability one half."""
    color: NonNegativeFloat = 0.0
    """Strength of the jitter of brightness, contrast and saturation; 0 = none."""
    rand_augment: Annotated[int, Field(ge=0, le=15)] = 0
    """Number of RandAugment operations, at most 15; 0 = none."""
    rand_augment_magnitude: Annotated[int, Field(ge=1, le=29)] = 9
    """Strength of each RandAugment operation, 1 to 29."""


class ImageClassificationSettings(ClassNames):
    """A class for an image (`image`: path or bytes, `label`)."""

    columns: ClassVar[Columns] = (("image", "label"),)
    label_columns: ClassVar[frozenset[str]] = frozenset({"label"})
    text_column: ClassVar[str | None] = None
    can: ClassVar[frozenset[Capability]] = frozenset({"brings_head", "embeds"})
    name: Literal["image_classification"] = "image_classification"
    """The task."""
    image_size: PositiveInt | None = None
    """Height and width in pixels after preparation; null = the image processor's own."""
    max_pixels: PositiveInt = 64_000_000
    """Most pixels of an image as it lies in its file; one with more is refused before it is decoded, which takes up to
    32 bytes of memory a pixel."""
    augment: AugmentationSettings = AugmentationSettings()
    """Random changes of training images."""
