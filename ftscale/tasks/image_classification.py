"""Image classification: a class for an image, decoded and changed when its batch is made."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from ftscale.config.schema import ImageClassificationSettings
from ftscale.errors import UserError
from ftscale.metrics.classification import ClassificationScores
from ftscale.metrics.top_k import TopKAccuracy
from ftscale.models.probing import transformers_model
from ftscale.tasks import COLUMNS
from ftscale.tasks.augment import Augment
from ftscale.tasks.base import Batch, Evaluator, Layout, Outputs, Row, Sample, model_inputs
from ftscale.tasks.collate import row_numbers
from ftscale.tasks.image_depth import largest_value, to_rgb
from ftscale.tasks.image_files import opened_image
from ftscale.tasks.labels import best_classes, class_id, class_name, class_numbers, label_settings, sorted_names
from ftscale.tasks.rows import mend, where

TOP = 5

Sizes = dict[str, dict[str, int]]
"""Arguments of the image processor's call: `size`, and `crop_size` where it crops."""


class ImageClassification:
    """The task of `task: image_classification`. Labels of a batch: (samples,) int64; an image is one target.

    Samples hold the path of an image or its encoded bytes, never its pixels.
    """

    auto_class = "AutoModelForImageClassification"
    processor_class = "image_processor"
    columns = COLUMNS["image_classification"]
    optional = ()
    best_metric = ("accuracy", True)

    def __init__(self, settings: ImageClassificationSettings) -> None:
        self.settings = settings
        self.ids = class_numbers(settings)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the class names in the order of their ids, from the settings or from what `fit` learned."""
        assert self.settings.labels is not None, "the training rows tell the labels: fit first"
        return self.settings.labels

    def fit(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Class names. Raises UserError for rows without a class, and where there are fewer than two classes."""
        if self.settings.labels is not None:
            return {}
        labels = sorted_names(class_name(row, "label") for row in rows)
        if len(labels) < 2:
            raise UserError(
                f"data.train has the classes {list(labels)}: too few to learn from; look at the label column, or name "
                "all classes in task.labels."
            )
        return {"labels": labels}

    def model_settings(self) -> dict[str, Any]:
        """Name the classes in the model's config, by which its head gets one output a class."""
        return {**label_settings(self.labels), "problem_type": "single_label_classification"}

    def prepare(self, rows: Sequence[Row], processor: Any, *, labelled: bool = True) -> list[Sample]:
        """Samples with `image_path` or `image_bytes` (the other is empty). Raises UserError for a corrupt image."""
        return [self._sample(row, labelled) for row in rows]

    def collator(self, processor: Any, *, layout: Layout, train: bool) -> Callable[[Sequence[Sample]], Batch]:
        """Return a collator that decodes and resizes one image at a time, and in training augments it."""
        sizes = _sizes(processor, self.settings.image_size)
        augment = Augment(self.settings.augment, size=_crop_size(sizes)) if train else None
        most = self.settings.max_pixels
        return partial(_collate, processor=processor, sizes=sizes, augment=augment, max_pixels=most)

    def count(self, batch: Batch) -> torch.Tensor:
        """Count the images, each of which is one target: () int64."""
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Sum the cross-entropy of the images' classes: () float32."""
        logits = model(**_inputs(model, batch)).logits
        return functional.cross_entropy(logits.float(), batch["labels"], reduction="sum")

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch, processor: Any) -> Outputs:
        """`logits`: (samples, classes) float32; with labels also `losses`: (samples,), and `loss`, their sum."""
        logits = model(**_inputs(model, batch)).logits.float()
        if "labels" not in batch:
            return {"logits": logits}
        losses = functional.cross_entropy(logits, batch["labels"], reduction="none")
        return {"logits": logits, "losses": losses, "loss": losses.sum()}

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss, class scores and, with more than `TOP` classes, top-5 accuracy."""
        return Evaluator(_records, self._score)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one made-up record of each class."""
        number, few = len(self.labels), min(TOP, len(self.labels))
        return list(self._score([(0.0, [(first + i) % number for i in range(few)], first) for first in range(number)]))

    def predictions(
        self, outputs: Outputs, batch: Batch, processor: Any, *, every: bool = False
    ) -> list[dict[str, Any]]:
        """The class and its probability."""
        return best_classes(outputs["logits"], self.labels, every=every)

    def _sample(self, row: Row, labelled: bool) -> Sample:
        path, data = _location(row)
        with opened_image(path, data, name=path or where(row), max_pixels=self.settings.max_pixels) as image:
            largest_value(image)
            image.draft("RGB", (1, 1))  # of a JPEG: all of the file is read, an eighth of the work is done
            image.load()
        sample: Sample = {
            "image_path": path,
            "image_bytes": data,
            "length": 1,
            "targets": int(labelled),
            "note": "",
        }
        if labelled:
            name = class_name(row, "label")
            sample["labels"] = class_id(row, "label", name, labels=self.labels, ids=self.ids)
        return sample

    def _score(self, records: Sequence[tuple[float, list[int], int]]) -> dict[str, float]:
        losses, best, truth = (list(column) for column in zip(*records, strict=True))
        scores = ClassificationScores(self.labels).compute(predictions=[ids[0] for ids in best], references=truth)
        if len(self.labels) > TOP:  # else it is 1 for any model
            scores |= TopKAccuracy(TOP).compute(predictions=best, references=truth)
        return {"loss": sum(losses) / len(losses), **scores}


def _inputs(model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's inputs, pixels in the type of its weights."""
    dtype = transformers_model(model).dtype
    return {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in model_inputs(batch).items()
    }


def _records(outputs: Outputs, batch: Batch) -> list[tuple[float, list[int], int]]:
    logits = outputs["logits"]
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
    return list(zip(outputs["losses"].tolist(), best.tolist(), batch["labels"].tolist(), strict=True))


def _collate(
    samples: Sequence[Sample], *, processor: Any, sizes: Sizes, augment: Augment | None, max_pixels: int
) -> Batch:
    made = []
    for sample in samples:  # one by one: the pixels of one image at a time, however large they are in the files
        image = decode(sample, name=f"image of row {sample['row']}", max_pixels=max_pixels)
        if augment is not None:
            image = augment(image, seed=sample["seed"], epoch=sample["epoch"], row=sample["row"])
        made.append(processor([image], return_tensors="pt", **sizes))
    batch: Batch = {name: torch.cat([inputs[name] for inputs in made]) for name in made[0]}
    batch["row"] = row_numbers(samples)
    if "labels" in samples[0]:
        batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
    return batch


def decode(sample: Sample, *, name: str, max_pixels: int) -> Image.Image:
    """The RGB image of a sample, upright as its camera noted. `name`: of an image without a path, in errors."""
    path = sample["image_path"]
    with opened_image(path, sample["image_bytes"], name=path or name, max_pixels=max_pixels) as image:
        return to_rgb(image)


def _location(row: Row) -> tuple[str, bytes]:
    """The path, or the encoded bytes, of a row's image; the other is empty."""
    image = row.get("image")
    if isinstance(image, dict):  # an image of the datasets library, not decoded
        image = image.get("bytes") or image.get("path")
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        try:
            largest_value(image)
            image.save(buffer, "PNG")
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{where(row)}: not a readable image ({error}); mend or remove it.") from error
        image = buffer.getvalue()
    if isinstance(image, (str, Path)) and str(image):
        return str(image), b""
    if isinstance(image, bytes) and image:
        return "", image
    raise UserError(f"{where(row)}: image = {image!r} must be a path or the bytes of an image file; {mend(image)}.")


def _sizes(processor: Any, image_size: int | None) -> Sizes:
    """The processor's `size`, and its `crop_size` where it crops; scaled so that images come out `image_size` wide."""
    size = dict(processor.size)
    crop = dict(processor.crop_size) if processor.do_center_crop else None
    if image_size is not None:
        scale = image_size / max((crop or size).values())
        size = {name: round(value * scale) for name, value in size.items()}
        crop = {"height": image_size, "width": image_size} if crop else None
    return {"size": size} | ({"crop_size": crop} if crop else {})


def _crop_size(sizes: Sizes) -> tuple[int, int]:
    """(height, width) in pixels to which a random crop is scaled, before the processor's own resizing."""
    size = sizes["size"]
    side = max(size.values())
    return size.get("height", side), size.get("width", side)
