"""What a kind of input promises to tasks, and to all that asks a task for it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from ftscale.config.schema import ModelConfig
from ftscale.modalities.collate import Layout

NOT_LEARNED: Mapping[str, Any] = MappingProxyType({})
"""What a processor that comes with its model is built from."""


class Modality(Protocol):
    """A kind of input: tokens, images. It holds no state; its processor is the task's."""

    unit: str
    """What a sample's cost counts, in the singular: "token", "image"."""
    in_tokens: bool
    """Whether a sample is a row of tokens, whose length is its cost and which a tokenizer made."""
    layouts: tuple[Layout, ...]
    """How samples may lie in a batch, where task and model allow it."""
    learns: frozenset[str]
    """The names under which a task's `fit` gives what the processor is built from, e.g. a vocabulary; empty = the
    processor comes with the model."""

    def load_processor(self, config: ModelConfig, *, learned: Mapping[str, Any] = NOT_LEARNED) -> Any:
        """The tokenizer or image processor that `config` names. Raises UserError where there is none.

        `learned`: what `fit` gave under the names in `learns`, of which a processor is built that saves itself with
        the model; empty = the one that lies there.
        """

    def is_learned(self, processor: Any) -> bool:
        """Whether the processor was built from what rows told: the model that it was saved with goes by it."""

    def fit_model(self, model: Any, processor: Any, *, seed: int) -> None:
        """Make a loaded model fit the processor: as many embeddings as tokens, the same padding id."""

    def probe(self, model_config: Any) -> dict[str, Tensor]:
        """A few inputs that a model with this config takes, to try it out on: (2, ...) tensors."""

    def show_input(self, sample: Any, processor: Any) -> str:
        """What the model reads of a sample, as a text."""
