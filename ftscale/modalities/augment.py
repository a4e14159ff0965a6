"""Random changes of training images by kornia, the same for a sample and an epoch however batches are cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from ftscale.base.seeding import derive_seed
from ftscale.config.tasks.image_classification import AugmentationSettings

Change = Callable[[torch.Tensor], torch.Tensor]


class Augment:
    """Changes one image: crop to the model's input size, mirror, colours, RandAugment, in this order.

    `size`: (height, width) in pixels of what the crop is scaled to.
    """

    def __init__(self, settings: AugmentationSettings, *, size: tuple[int, int]) -> None:
        self.changes = _changes(settings, size)

    def __call__(self, image: Image.Image, *, seed: int, epoch: int, row: int) -> Image.Image:
        """The changed RGB image, a function of the arguments alone; torch's own generator is left as it was."""
        if not self.changes:
            return image
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "augment", epoch, row))
            for change in self.changes:
                pixels = change(pixels)
        return Image.fromarray((pixels[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _changes(settings: AugmentationSettings, size: tuple[int, int]) -> list[Change]:
    if not (settings.crop or settings.flip or settings.color or settings.rand_augment):
        return []
    from kornia import augmentation  # 2 s to import: only where it is used
    from kornia.augmentation.auto import RandAugment

    changes: list[Change] = []
    if settings.crop:
        changes.append(augmentation.RandomResizedCrop(size, scale=(settings.crop, 1.0)))
    if settings.flip:
        changes.append(augmentation.RandomHorizontalFlip(p=0.5))
    if settings.color:
        changes.append(augmentation.ColorJitter(settings.color, settings.color, settings.color))
    if settings.rand_augment:
        changes.append(RandAugment(settings.rand_augment, settings.rand_augment_magnitude))
    return changes
