"""Samples of tokens to a micro-batch: padded to the longest, or flat, end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ftscale.tasks.base import Batch, Layout, Sample

IGNORED = -100  # a label outside the loss, as in torch's cross_entropy


def collate_tokens(samples: Sequence[Sample], *, fill: Mapping[str, int], layout: Layout) -> Batch:
    """The token-level part of a micro-batch, and `row`.

    `fill`: the token-level names, each with the value that padding has; names that the samples lack are left out.
    Shapes and further entries as `tasks.base.Batch` says; all int64 but the boundaries.
    """
    names = [name for name in fill if name in samples[0]]
    batch = _flat(samples, names) if layout == "flat" else _padded(samples, {name: fill[name] for name in names})
    batch["row"] = row_numbers(samples)
    return batch


def row_numbers(samples: Sequence[Sample]) -> torch.Tensor:
    """The samples' numbers in their data set: (samples,) int64."""
    return torch.tensor([sample["row"] for sample in samples])


def pad_id(tokenizer: Any) -> int:
    """The token to pad with; its positions are masked, so any will do where the tokenizer has none."""
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Lists to (rows, longest) int64, padded on the right."""
    return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=value)


def split_positions(batch: Batch) -> list[tuple[int, slice]]:
    """Where each sample lies in a token-level tensor of the batch: its row, and its positions there."""
    if "cu_seq_lens_q" in batch:
        bounds = batch["cu_seq_lens_q"].tolist()
        return [(0, slice(start, stop)) for start, stop in zip(bounds, bounds[1:], strict=False)]
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [(index, slice(0, length)) for index, length in enumerate(lengths)]


def _padded(samples: Sequence[Sample], fill: Mapping[str, int]) -> Batch:
    batch: Batch = {name: pad_rows([sample[name] for sample in samples], value) for name, value in fill.items()}
    batch["attention_mask"] = pad_rows([[1] * len(sample["input_ids"]) for sample in samples], 0)
    return batch


def _flat(samples: Sequence[Sample], names: Sequence[str]) -> Batch:
    lengths = [len(sample["input_ids"]) for sample in samples]
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    batch: Batch = {
        name: torch.tensor([list(chain.from_iterable(sample[name] for sample in samples))]) for name in names
    }
    batch["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    batch["cu_seq_lens_q"] = batch["cu_seq_lens_k"] = bounds
    batch["max_length_q"] = batch["max_length_k"] = max(lengths)
    return batch
