"""Whether the images that settings and processor make are those that the model takes: size, shape, channels."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.data.sample import Sample
from ftscale.models.without_weights import model_without_weights
from ftscale.tasks.base import Task

SHAPES = ((64, 48), (48, 64))  # of made images, width and height: real ones are of all shapes
REFUSALS = (ValueError, RuntimeError)
"""What a model raises for images of another size; on tensors without memory too."""


def image_problems(task: Task, config: Config, model_config: Any) -> list[str]:
    """Prepares made images as training will, and shows their shape to a model without weights."""
    processor, size = task.processor, task.settings.image_size
    try:
        made_of = [task.collate([_sample(*shape)], layout="padded", train=False).inputs for shape in SHAPES]
    except (UserError, *REFUSALS, KeyError, TypeError) as error:
        return [f"model.processor: {type(processor).__name__} cannot prepare an image ({error}); set another one."]
    made, other = (tuple(inputs["pixel_values"].shape[1:]) for inputs in made_of)
    if made != other:
        return [
            f"model.processor: {type(processor).__name__} makes images of unlike shapes ({_shown(made)} and "
            f"{_shown(other)} of 64 x 48 and 48 x 64 pixels), which fit into no batch; set its size to a height and a "
            "width, or let it crop."
        ]
    asked = "" if size is None else f" (task.image_size = {size})"
    wanted = model_config.to_dict().get("num_channels", made[0])
    if wanted != made[0]:
        return [
            f"model.name = {config.model.name!r} takes images of {wanted} channels, and they come with {made[0]} (red, "
            "green, blue) from the image processor; choose a model for colour images."
        ]
    problem = _refused(config, task, model_config, made_of[0])
    if problem is None:
        return []
    own = model_config.to_dict().get("image_size")
    fix = f"set task.image_size: {own}" if isinstance(own, int) else "set task.image_size to the model's own size"
    return [
        f"model.processor makes images of {_shown(made)} pixels{asked}, and the model takes "
        f"{'others' if own is None else own}: {problem.rstrip('.')}; {fix}."
    ]


def _sample(width: int, height: int) -> Sample:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return Sample({"image_path": "", "image_bytes": file.getvalue()}, number=0)


def _refused(config: Config, task: Task, model_config: Any, inputs: dict[str, Any]) -> str | None:
    """What the model says of such images; None where it takes them, or cannot be made without weights."""
    trust = config.model.trust_remote_code
    model = model_without_weights(model_config, auto_class=task.auto_class, trust_remote_code=trust)
    if model is None:
        return None
    try:
        with torch.no_grad():
            model.eval()(**{name: value.to("meta") for name, value in inputs.items()})
    except NotImplementedError:  # an operation that needs memory
        return None
    except REFUSALS as error:
        return str(error).splitlines()[0]
    return None


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[1:]))
