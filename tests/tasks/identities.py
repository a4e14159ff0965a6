"""A task over images as a user may write it: vectors of images, near to those of the same identity."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from ftscale.config.own_task import OwnTaskSettings
from ftscale.config.tasks.image_classification import ImageClassificationSettings
from ftscale.data.loader import Step
from ftscale.data.sample import Sample
from ftscale.tasks.base import Evaluator
from ftscale.tasks.batch import Batch
from ftscale.tasks.context import Context
from ftscale.tasks.embedding_losses import GRADIENT, Compared, batch_hard_triplet, compare_all, second_pass
from ftscale.tasks.embedding_scores import Found, found_of, records_of, scores_of
from ftscale.tasks.image_classification import ImageClassification


class IdentitiesSettings(OwnTaskSettings, ImageClassificationSettings):
    """Vectors of images, those of one identity near to each other (`image`: path or bytes, `label`)."""

    can: ClassVar = frozenset({"embeds"})
    name: Literal["identities"] = "identities"
    """The task."""
    margin: float = 0.5
    """Cosine distance by which the farthest image of an identity is to be nearer than the nearest of another."""


class Identities(ImageClassification):
    """An image is one target, which is compared with all others of the global batch."""

    auto_class = "AutoModel"
    acts_before_step = True

    @property
    def best_metric(self) -> str:
        return "recall@1"

    @property
    def triplets(self) -> Any:
        return partial(batch_hard_triplet, margin=self.settings.margin)

    def model_settings(self) -> dict[str, Any]:
        return {}

    def collate(self, samples: Sequence[Sample], *, layout: str, train: bool) -> Batch:
        return replace(super().collate(samples, layout=layout, train=train), sequences=[1] * len(samples))

    def before_step(self, step: Step, context: Context) -> Step:
        return compare_all(step, context, vectors_of=self.embed, compared_of=self.compared, loss=self.triplets)

    def compared(self, batch: Batch, vectors: torch.Tensor) -> Compared:
        weights = vectors.new_ones(len(batch)) if batch.weights is None else batch.weights
        return Compared(vectors, batch.sequences, batch.rows, batch.labels, weights, batch.rows)

    def loss(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        vectors = self.embed(model, batch)
        if GRADIENT in batch.extra:
            return {"loss": second_pass(batch, vectors)}
        return {"loss": self.triplets(self.compared(batch, vectors)).sum()}

    @torch.no_grad()
    def outputs(self, model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
        return {"vectors": self.embed(model, batch)}

    def evaluator(self) -> Evaluator:
        join = partial(found_of, kind="classes", loss=self.triplets)
        return Evaluator(
            lambda outputs, batch: records_of(outputs, batch.rows[:, None], batch.labels, batch.sequences),
            scores_of,
            join=join,
        )

    def metric_names(self) -> list[str]:
        return list(scores_of([Found.made_up("classes")]))

    def predictions(self, outputs: dict[str, Any], batch: Batch, *, every: bool = False) -> list[dict[str, Any]]:
        return [{"prediction": vector, "score": None} for vector in outputs["vectors"].tolist()]
