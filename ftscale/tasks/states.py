"""Vectors of samples out of a model's hidden states: at the tokens of a text, or at the places of an image."""

from __future__ import annotations

from typing import Any, Literal

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


def pooled_tokens(states: Tensor, inputs: dict[str, Any], how: Literal["mean", "cls", "last_token"]) -> Tensor:
    """(sequences, hidden) float32: the mean of each sequence's hidden states, its first one or its last one.

    states: (rows, time, hidden), laid out as the inputs are, padded on the right or flat.
    """
    if "cu_seq_lens_q" in inputs:
        starts = inputs["cu_seq_lens_q"].long()
        lengths, rows = starts.diff(), states[0]
        if how == "cls":
            return rows[starts[:-1]].float()
        if how == "last_token":
            return rows[starts[1:] - 1].float()
        owners = torch.repeat_interleave(lengths, output_size=len(rows))
        sums = rows.new_zeros(len(lengths), rows.shape[-1], dtype=torch.float32).index_add(0, owners, rows.float())
        return sums / lengths[:, None]
    mask = inputs["attention_mask"]
    if how == "cls":
        return states[:, 0].float()
    if how == "last_token":
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1].float()
    return (states.float() * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


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
