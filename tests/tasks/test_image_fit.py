"""Sizes and channels of processor, settings and model are compared before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextImageProcessorPil,
    Dinov2Config,
    PreTrainedConfig,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from ftscale.base.errors import UserError
from ftscale.config import parse_config
from ftscale.precheck import check_config
from ftscale.run.train import train

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT = ViTConfig(image_size=32, patch_size=8, **SIZES)
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}


def images(work: Path, config: PreTrainedConfig, processor: Any, **task: Any) -> dict[str, Any]:
    """A run on four small pictures."""
    config.save_pretrained(work / "model")
    processor.save_pretrained(work / "model")
    for number in range(4):
        folder = work / "pictures" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30 + number), (60 * number,) * 3).save(folder / f"{number}.png")
    return {
        "task": {"name": "image_classification", **task},
        "run_folder": str(work / "run"),
        "model": {"name": str(work / "model"), "init": "random"},
        "data": {"train": str(work / "pictures"), "cache_dir": str(work / "cache")},
        "batch": {"global_size": 4},
        "train": {"max_steps": 1},
        "checkpoint": {"prove": "never"},
    }


def square(pixels: int) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": pixels, "width": pixels})


def refusal(settings: dict[str, Any]) -> str:
    settings["data"]["train"] = "no such folder"  # told without it
    with pytest.raises(UserError) as error:
        check_config(parse_config(settings, source="test"))
    return error.value.problems[0]


def test_a_processor_of_another_size_than_the_model_is_told_and_the_advice_works(tmp_path: Path):
    settings = images(tmp_path, VIT, square(64))
    data = dict(settings["data"])
    said = refusal(settings)
    assert said.startswith("model.processor makes images of 64 x 64 pixels, and the model takes 32: Input image size")
    assert said.endswith("set task.image_size: 32.")
    settings |= {"data": data, "task": {**settings["task"], "image_size": 32}}
    assert train(parse_config(settings, source="test")).status == "completed"


def test_an_image_size_that_the_model_does_not_take_is_told(tmp_path: Path):
    said = refusal(images(tmp_path, VIT, square(32), image_size=64))
    assert "makes images of 64 x 64 pixels (task.image_size = 64), and the model takes 32" in said


@pytest.mark.parametrize(
    "config", [ResNetConfig(**RESNET), Dinov2Config(image_size=28, patch_size=14, **SIZES)], ids=["resnet", "dinov2"]
)
def test_a_model_that_takes_any_size_is_left_alone(tmp_path: Path, config: PreTrainedConfig):
    settings = images(tmp_path, config, square(28), image_size=56)
    assert train(parse_config(settings, source="test")).status == "completed"


def test_a_model_of_other_channels_is_told(tmp_path: Path):
    grey = ViTConfig(image_size=32, patch_size=8, num_channels=1, **SIZES)
    assert "takes images of 1 channels, and they come with 3" in refusal(images(tmp_path, grey, square(32)))


def test_images_that_keep_their_own_shape_fit_into_no_batch(tmp_path: Path):
    free = ViTImageProcessorPil(do_resize=False)
    said = refusal(images(tmp_path, ResNetConfig(**RESNET), free))
    assert "makes images of unlike shapes (48 x 64 and 64 x 48 of 64 x 48 and 48 x 64 pixels)" in said
    crops = ConvNextImageProcessorPil(size={"shortest_edge": 32})
    config = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    assert train(parse_config(images(tmp_path / "c", config, crops), source="test")).status == "completed"
