"""Samples of tokens to a model's inputs: padded to the longest, or flat, end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Layout = Literal["flat", "padded"]
"""How samples of tokens lie in a batch: end to end in one row, or each in a row of its own."""

IGNORED = -100  # a label outside the loss, as in torch's cross_entropy


def collate_tokens(
    samples: Sequence[Mapping[str, Sequence[int]]], *, fill: Mapping[str, int], layout: Layout
) -> dict[str, Any]:
    """Token-level tensors of a micro-batch, and how its samples lie in them, as `tasks.batch.Batch` says.

    `samples`: lists of tokens by name, `input_ids` among them; `fill`: the names to take, each with the value that
    padding has; names that the samples lack are left out. All are int64 but the boundaries.
    """
    names = [name for name in fill if name in samples[0]]
    return _flat(samples, names) if layout == "flat" else _padded(samples, {name: fill[name] for name in names})


def pad_id(tokenizer: Any) -> int:
    """The token to pad with; its positions are masked, so any will do where the tokenizer has none."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Lists to (rows, longest) int64, padded on the right."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value)


def _padded(samples: Sequence[Mapping[str, Sequence[int]]], fill: Mapping[str, int]) -> dict[str, Any]:
    batch: dict[str, Any] = {
        name: pad_rows([sample[name] for sample in samples], value) for name, value in fill.items()
    }
    batch["attention_mask"] = pad_rows([[1] * len(sample["input_ids"]) for sample in samples], 0)
    return batch


def _flat(samples: Sequence[Mapping[str, Sequence[int]]], names: Sequence[str]) -> dict[str, Any]:
    lengths = [len(sample["input_ids"]) for sample in samples]
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    batch: dict[str, Any] = {
        name: torch.tensor([list(chain.from_iterable(sample[name] for sample in samples))]) for name in names
    }
    batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = bounds
    batch["max_length_q"] = batch["max_length_k"] = max(lengths)
    return batch
