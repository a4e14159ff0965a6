"""A vector for each sample: the mean of the hidden states at its tokens, or at the places of its image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ftscale.models.probing import transformers_model
from ftscale.tasks.batch import Batch


def mean_of_tokens(states: Tensor, batch: Batch) -> Tensor:
    """(samples, hidden) float32. states: (rows, time, hidden), laid out as the batch is, or by sample."""
    spans = batch.spans
    if len(states) != 1:
        spans = [(number, slice(0, span.stop - span.start)) for number, (_, span) in enumerate(spans)]
    return torch.stack([states[row, span].float().mean(dim=0) for row, span in spans])


def mean_of_places(states: Tensor) -> Tensor:
    """(samples, hidden) float32. states: (samples, places, hidden), or (samples, hidden, height, width)."""
    states = states.float()
    return states.flatten(2).mean(dim=-1) if states.ndim == 4 else states.mean(dim=1)


def states_below_head(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The last hidden states of the model without its head, which pools or classifies: with their graph.

    The whole model runs, since it alone knows how its base is called, e.g. with flat rows.
    """
    found: list[Tensor] = []
    base = transformers_model(model).base_model
    handle = base.register_forward_hook(lambda module, args, output: found.append(output.last_hidden_state))
    try:
        model(**inputs)
    finally:
        handle.remove()
    return found[-1]
