"""Image classification: a class for an image, decoded and changed when its batch is made."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.tasks.image_classification import ImageClassificationSettings
from ftscale.data.sample import Sample
from ftscale.metrics.classification import ClassificationScores
from ftscale.metrics.top_k import TopKAccuracy
from ftscale.modalities.augment import Augment
from ftscale.modalities.collate import Layout
from ftscale.modalities.image import Images
from ftscale.modalities.image_depth import NEARLY_ONE, largest_value, to_rgb, value_range
from ftscale.modalities.image_files import UnreadableImage, opened_image
from ftscale.models.probing import transformers_model
from ftscale.tasks.base import Answer, Evaluator, Pieces, Row, Task, row_numbers, weighted
from ftscale.tasks.batch import Batch, Columns, Counts, Outputs, Terms
from ftscale.tasks.image_fit import image_problems
from ftscale.tasks.labels import best_classes, class_id, class_name, class_numbers, label_settings, sorted_names
from ftscale.tasks.rows import mend, where
from ftscale.tasks.states import mean_of_places, states_below_head

TOP = 5
LOOKED_AT_IMAGES = 200
"""Images that are decoded to see whether they show something."""

Sizes = dict[str, dict[str, int]]
"""Arguments of the image processor's call: `size`, and `crop_size` where it crops."""


Record = tuple[float, list[int], int, float]
"""What evaluation keeps of an image: its loss, the likeliest classes, its class, and how likely the first one is."""


class ImageClassification(Task):
    """The task of `task: image_classification`. Labels of a batch: (samples,) int64; an image is one target.

    Samples hold the path of an image or its encoded bytes, never its pixels.
    """

    auto_class = "AutoModelForImageClassification"
    pipeline_tag = "image-classification"
    modality = Images()
    settings: ImageClassificationSettings

    def __init__(self, settings: ImageClassificationSettings, processor: Any = None) -> None:
        super().__init__(settings, processor)
        self.ids = class_numbers(settings)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers."""
        assert self.settings.labels is not None, "the training rows tell the labels: fit first"
        return self.settings.labels

    @property
    def best_metric(self) -> str:
        return "accuracy"

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

    def fit_problems(self, config: Config, model_config: Any) -> list[str]:
        return image_problems(self, config, model_config)

    def prepare(self, rows: Sequence[Row], *, labelled: bool = True) -> list[Sample]:
        """Samples with `image_path` or `image_bytes` (the other is empty). Raises UserError for a corrupt image."""
        return [self._sample(row, labelled) for row in rows]

    def collate(self, samples: Sequence[Sample], *, layout: Layout, train: bool) -> Batch:
        sizes = _sizes(self.processor, self.settings.image_size)
        augment = Augment(self.settings.augment, size=_crop_size(sizes)) if train else None
        made = []
        for sample in samples:  # one by one: the pixels of one image at a time, however large they are in the files
            pixels = self.decode(sample, name=f"image of row {sample.number}")
            if augment is not None:
                pixels = augment(pixels, seed=sample.seed, epoch=sample.epoch, row=sample.number)
            made.append(self.processor([pixels], return_tensors="pt", **sizes))
        inputs = {name: torch.cat([one[name] for one in made]) for name in made[0]}
        labels = None if samples[0].label is None else torch.tensor([sample.label for sample in samples])
        return Batch(inputs, row_numbers(samples), labels)

    def decode(self, sample: Sample, *, name: str) -> Image.Image:
        """The RGB image of a sample, upright as its camera noted. `name`: of an image without a path, in errors."""
        path, most = sample.inputs["image_path"], self.settings.max_pixels
        with opened_image(path, sample.inputs["image_bytes"], name=path or name, max_pixels=most) as found:
            return to_rgb(found)

    def count(self, batch: Batch) -> Counts:
        return {"loss": len(batch)}

    def loss(self, model: nn.Module, batch: Batch) -> Terms:
        logits = model(**_inputs(model, batch)).logits
        reduction = "sum" if batch.weights is None else "none"
        losses = functional.cross_entropy(logits.float(), batch.labels, reduction=reduction)
        return {"loss": losses if batch.weights is None else weighted(losses, batch)}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the last hidden states over the places of the image."""
        return mean_of_places(states_below_head(model, _inputs(model, batch)))

    @torch.no_grad()
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """`logits`: (samples, classes) float32; with labels also `losses`: (samples,)."""
        logits = model(**_inputs(model, batch)).logits.float()
        if batch.labels is None:
            return {"logits": logits}
        return {"logits": logits, "losses": functional.cross_entropy(logits, batch.labels, reduction="none")}

    def evaluator(self) -> Evaluator:
        """Return an evaluator of loss, class scores and, with more than `TOP` classes, top-5 accuracy."""
        return Evaluator(_records, self._score, columns=self._columns)

    def metric_names(self) -> list[str]:
        """Name the metrics that the evaluator gives, by scoring one made-up record of each class."""
        number, few = len(self.labels), min(TOP, len(self.labels))
        best = [[(first + place) % number for place in range(few)] for first in range(number)]
        return list(self._score([(0.0, ids, ids[0], 1.0) for ids in best]))

    def predictions(self, outputs: Outputs, batch: Batch, *, every: bool = False) -> list[Answer]:
        """The class and its probability."""
        return best_classes(outputs["logits"], self.labels, every=every)

    @property
    def has_classes(self) -> bool:
        return True

    def classes(self, sample: Sample) -> list[int]:
        return [sample.label]

    def show(self, row: Row, sample: Sample) -> Pieces:
        """The end of the image's name, and its class."""
        return [(str(row.get("image", ""))[-80:], False), (str(row.get("label", "")), True)]

    def sample_warnings(self, samples: Sequence[Sample]) -> list[str]:
        """Of images that show nearly nothing, as one does whose values use little of the range of its depth."""
        looked_at = samples[:: max(len(samples) // LOOKED_AT_IMAGES, 1)]
        flat = []
        for number, sample in enumerate(looked_at):
            low, high = value_range(self.decode(sample, name=f"image {number}"))
            if high - low < NEARLY_ONE:
                flat.append(f"{sample.inputs['image_path'] or 'one in the rows'} ({low} to {high} of 255)")
        if not flat:
            return []
        return [
            f"the values of {len(flat)} of {len(looked_at)} images looked at are nearly all one, e.g. {flat[0]}: they "
            "are blank, or use little of the range of their bits; rescale or remove them."
        ]

    def _sample(self, row: Row, labelled: bool) -> Sample:
        path, data = _location(row)
        try:
            with opened_image(path, data, name=path or where(row), max_pixels=self.settings.max_pixels) as found:
                largest_value(found)
                found.draft("RGB", (1, 1))  # of a JPEG: all of the file is read, an eighth of the work is done
                found.load()
        except UnreadableImage:
            if "unreadable" not in row.get("_drop", ()):
                raise
            return Sample(cost=0, drop="unreadable")
        label = None
        if labelled:
            label = class_id(row, "label", class_name(row, "label"), labels=self.labels, ids=self.ids)
        return Sample({"image_path": path, "image_bytes": data}, label, counts={"loss": int(labelled)})

    def _score(self, records: Sequence[Record]) -> dict[str, float]:
        losses, best, truth, _ = (list(column) for column in zip(*records, strict=True))
        scores = ClassificationScores(self.labels).compute(predictions=[ids[0] for ids in best], references=truth)
        if len(self.labels) > TOP:  # else it is 1 for any model
            scores |= TopKAccuracy(TOP).compute(predictions=best, references=truth)
        return {"loss": sum(losses) / len(losses), **scores}

    def _columns(self, records: Sequence[Record]) -> Columns:
        losses, best, truth, scores = (list(column) for column in zip(*records, strict=True))
        prediction, label = [self.labels[ids[0]] for ids in best], [self.labels[number] for number in truth]
        return {"loss": losses, "prediction": prediction, "label": label, "score": scores}


def _inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's inputs, pixels in the type of its weights."""
    dtype = transformers_model(model).dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.inputs.items()}


def _records(outputs: Outputs, batch: Batch) -> list[Record]:
    logits = outputs["logits"]
    best = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
    kept = (outputs["losses"], best, batch.labels, logits.softmax(dim=-1).amax(dim=-1))
    return list(zip(*(column.tolist() for column in kept), strict=True))


def _location(row: Row) -> tuple[str, bytes]:
    """The path, or the encoded bytes, of a row's image; the other is empty."""
    image = row.get("image")
    if isinstance(image, dict):  # an image of the datasets library, not decoded
        image = image.get("bytes") or image.get("path")
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        try:
            to_rgb(image).save(buffer, "PNG")
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
