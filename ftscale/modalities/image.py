"""Images as pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from ftscale.config.schema import ModelConfig
from ftscale.modalities.base import NOT_LEARNED
from ftscale.modalities.collate import Layout
from ftscale.models.load import load_processor


class Images:
    """Pixels from an image processor, of those that need Pillow alone."""

    unit = "image"
    in_tokens = False
    layouts: tuple[Layout, ...] = ("padded",)
    learns: frozenset[str] = frozenset()

    def load_processor(self, config: ModelConfig, *, learned: Mapping[str, Any] = NOT_LEARNED) -> Any:
        """The image processor of `config.processor`, or else of `config.name`. Raises UserError where there is none."""
        return load_processor(config, build=_build, what="image processor")

    def is_learned(self, processor: Any) -> bool:
        """No: it comes with the model."""
        return False

    def fit_model(self, model: Any, processor: Any, *, seed: int) -> None:
        """Nothing: pixels are pixels."""

    def probe(self, model_config: Any) -> dict[str, Tensor]:
        """Images (2, channels, height, width) float32."""
        known = model_config.to_dict()
        size = known.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        random = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, known["num_channels"], height, width, generator=random)}

    def show_input(self, sample: Any, processor: Any) -> str:
        """The image's file, or that it lies in the rows."""
        return sample.inputs["image_path"] or "an image in the rows"


def _build(place: str, options: dict[str, Any]) -> Any:
    return AutoImageProcessor.from_pretrained(place, backend="pil", **options)
