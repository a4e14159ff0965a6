"""What a task may be able to do besides its loss, for methods that need it (`TaskSettings.can`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from ftscale.tasks.batch import Batch


class Embeds(Protocol):
    """`embeds`: a vector for each sample."""

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """(samples, dim) float32 with its graph: the same in whatever batch and layout a sample lies."""


class GivesLogits(Protocol):
    """`gives_logits`: the scores of all tokens of the vocabulary where a target stands."""

    def target_logits(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, slice]]:
        """(n, vocabulary) float32 with their graph, chunk by chunk, and which targets they are for.

        Targets are numbered in row-major order of the batch's labels. Let go of a chunk before the next is made: all of
        them together may not fit into memory.
        """


class ScoresSequences(Protocol):
    """`scores_sequences`: how likely the model finds each sample's targets."""

    def log_probs(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sums of the targets' log-probabilities with their graph, and the targets: (samples,) float32 each."""


CAPABILITIES: dict[str, type] = {"embeds": Embeds, "gives_logits": GivesLogits, "scores_sequences": ScoresSequences}
"""By their names in `TaskSettings.can`."""
