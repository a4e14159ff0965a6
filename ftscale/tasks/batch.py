"""A micro-batch, and what comes out of a model for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

Terms = dict[str, Tensor]
"""Losses by name, each () float32: the sum over its targets, each sample times its weight."""

Counts = dict[str, float]
"""What each term is divided by, over the global batch: the number of its targets, by the same names."""

Outputs = dict[str, Any]
"""What the evaluator and `predictions` read: task-specific tensors and lists with one entry a sample."""

Columns = dict[str, list[Any]]
"""What is noted of scored rows, a value each: `loss`, the mean over the row's `targets` (1 where that is left out);
`prediction`, `label` and `score`, where the task has them, as in answers; and further scores of the row."""


@dataclass
class Batch:
    """A micro-batch. Only `inputs` reaches the model's forward: what is added elsewhere, no model sees.

    Padded layout: inputs are tensors (samples, longest), with `attention_mask`. Flat layout: tensors (1, tokens), no
    attention mask, `position_ids` that restart at each sample, and the arguments by which transformers' attention
    functions know the samples: `cu_seq_lens_q`, `cu_seq_lens_k`: (samples + 1,) int32, `max_length_q`,
    `max_length_k`: int. Where samples are several sequences each, all this is of the sequences.
    """

    inputs: dict[str, Any]
    """What the model's forward takes, by its names: tensors, and whole numbers."""
    rows: Tensor
    """(samples,) int64: the samples' numbers in their data set."""
    labels: Any = None
    """What the loss compares with; None where it is not known."""
    weights: Tensor | None = None
    """(samples,) float32: the factor of each sample in every term; None = 1."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """(samples, ...): what was computed before the step, e.g. by a frozen model."""
    notes: list[Any] = field(default_factory=list)
    """One plain value a sample that evaluation and prediction read; empty in training."""
    sequences: list[int] = field(default_factory=list)
    """How many sequences of tokens each sample is, one after the other in the inputs; empty = each is one."""
    reads: Tensor | None = None
    """(sequences,) int64: which sequence of the inputs each of the samples' is, where equal ones stand once; None =
    each is its own."""
    drawn_by: Tensor | None = None
    """(sequences of the inputs, 2) int64: numbers that dropout draws by in place of the samples' rows and repeats."""
    group: str = ""
    """The name of the task, where a step has samples of several; a micro-batch never mixes them."""
    repeats: Tensor | None = None
    """(samples,) int64: how often each row came before in the optimizer step; None = never."""

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.rows)

    @property
    def spans(self) -> list[tuple[int, slice]]:
        """Where each sample lies in a token-level tensor: its row, and its positions there."""
        if "cu_seq_lens_q" in self.inputs:
            bounds = self.inputs["cu_seq_lens_q"].tolist()
            return [(0, slice(start, stop)) for start, stop in zip(bounds, bounds[1:], strict=False)]
        lengths = self.inputs["attention_mask"].sum(dim=1).tolist()
        return [(index, slice(0, length)) for index, length in enumerate(lengths)]

    def owners(self, chosen: Tensor) -> Tensor:
        """The sample, by its place in the batch, of each chosen token: (chosen,) int64, in row-major order.

        chosen: a boolean mask with the shape of a token-level tensor.
        """
        rows, positions = chosen.nonzero(as_tuple=True)
        if "cu_seq_lens_q" not in self.inputs:
            return rows
        return torch.searchsorted(self.inputs["cu_seq_lens_q"][1:].long(), positions, right=True)

    def sequence_rows(self) -> tuple[Tensor, Tensor | None]:
        """The row of each sequence of tokens, and which of its row's sequences in the optimizer step it is.

        (sequences of the inputs,) int64 each; the second is None where each row has one sequence and stands once in the
        step.
        """
        if self.drawn_by is not None:
            return self.drawn_by[:, 0], self.drawn_by[:, 1]
        if not self.sequences:
            return self.rows, self.repeats
        numbers = torch.tensor(self.sequences, device=self.rows.device)
        places = torch.cat([torch.arange(number) for number in self.sequences]).to(self.rows.device)
        before = 0 if self.repeats is None else (self.repeats * numbers).repeat_interleave(numbers)
        return self.rows.repeat_interleave(numbers), places + before

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on the device."""
        return Batch(**{item.name: _moved(getattr(self, item.name), device) for item in fields(self)})


def total_of(terms: Terms, factors: Mapping[str, float]) -> Tensor:
    """The sum of all terms, each times its factor: () float32."""
    parts = [term * factors[name] for name, term in terms.items()]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    return value
