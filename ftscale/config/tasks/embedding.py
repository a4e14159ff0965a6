"""Settings of embeddings."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from ftscale.config.tasks.base import Capability, Columns, TextSettings

Loss = Literal["infonce", "triplet", "margin_mse", "cosent", "cosine_mse", "contrastive", "batch_hard_triplet"]
Pooling = Literal["mean", "cls", "last_token"]

OF_DOCUMENTS: Columns = (
    ("anchor", "positive", "negative", "score"),
    ("anchor", "positive", "negative"),
    ("anchor", "positive", "score"),
    ("anchor", "positive"),
)
OF_PAIRS: Columns = (("text", "text_pair", "score"),)
OF_CLASSES: Columns = (("text", "label"),)


class EmbeddingSettings(TextSettings):
    """A vector for each text (`anchor`, `positive`, `negative`, or `text` with `text_pair`, `score` or `label`)."""

    columns: ClassVar[Columns] = (*OF_DOCUMENTS, *OF_PAIRS, *OF_CLASSES)
    label_columns: ClassVar[frozenset[str]] = frozenset({"positive", "negative", "text_pair", "score", "label"})
    outcome_columns: ClassVar[frozenset[str] | None] = frozenset({"score", "label"})
    optional_columns: ClassVar[frozenset[str]] = frozenset({"anchor", "negative"})
    learned: ClassVar[dict[str, Any]] = {"loss": None}
    can: ClassVar[frozenset[Capability]] = frozenset({"flat_rows", "embeds"})
    name: Literal["embedding"] = "embedding"
    """The task."""
    loss: Loss | None = None
    """What is learned: to find the positive among all texts of the global batch (infonce); to have it nearer than the
    negative (triplet), or by as much as a score says (margin_mse); the order of scores (cosent), or the scores
    themselves (cosine_mse); pairs of score 1 near and of score 0 apart (contrastive); texts of one label nearer than
    those of others (batch_hard_triplet); null = infonce, cosent or batch_hard_triplet, by the columns of the rows."""
    symmetric: bool = False
    """Whether infonce also looks for the anchor of each positive among all anchors."""
    temperature: PositiveFloat = 0.05
    """What cosines are divided by in infonce and cosent."""
    margin: PositiveFloat = 0.5
    """By how much a cosine distance is to be the larger one, in the losses of triplets and in contrastive."""
    matryoshka: tuple[PositiveInt, ...] = ()
    """Sizes of vectors: the loss is the sum over vectors cut to each of them; none = whole vectors alone."""
    pooling: Pooling | None = None
    """The vector of a text by those of its tokens: their mean, the first one or the last one; null = as the model's own
    files say, else mean."""
    normalize: bool | None = None
    """Whether vectors have length 1; null = as the model's own files say, else true."""
    query_prompt: str | None = None
    """What is put before each anchor; null = as the model's own files say, else nothing."""
    document_prompt: str | None = None
    """What is put before each other text; null = as the model's own files say, else nothing."""
