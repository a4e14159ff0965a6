"""What probes of a model share.

The transformers model inside its wrappers, a forward pass without traces, and the kind of device a tensor stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ftscale.models.choices import as_single_choices, takes_choices

REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model raises that was not made for what is tried."""

PROBE_LENGTHS = (5, 9, 3)
LONGEST_PROBE = 256
"""The probe goes past a sliding window if the window is no longer than this many tokens."""

_pretended: ContextVar[str | None] = ContextVar("pretended", default=None)


def device_kind(tensor: Tensor) -> str:
    """cpu, cuda, ...: of the tensor's device, or as `pretending` says."""
    return _pretended.get() or tensor.device.type


@contextmanager
def pretending(kind: str) -> Iterator[None]:
    """Inside, kernels and chunks are chosen as on this kind of device: a forecast's tensors are in no memory at all."""
    token = _pretended.set(kind)
    try:
        yield
    finally:
        _pretended.reset(token)


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The outermost transformers model inside PEFT, DDP or engine wrappers (or the model itself).

    Raises TypeError where there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise TypeError(f"{type(model).__name__} holds no transformers model")


def logits_of(output: Any) -> Tensor:
    """A transformers model's output as one tensor: its logits; those of start and end side by side (..., 2).

    Of a model without a head, its last hidden states.
    """
    for name in ("logits", "last_hidden_state"):
        if name in output:
            return output[name]
    return torch.stack([output.start_logits, output.end_logits], dim=-1)


@contextmanager
def without_traces(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; each module's own mode (frozen ones stay in eval) is put back after.

    No dropout means that no random number is drawn, so that a probe does not change a run.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def probe_rows(inner: PreTrainedModel) -> list[Tensor]:
    """Ragged rows of token ids without special tokens, one past the sliding window where there is a short one."""
    config = inner.config.get_text_config()
    settings = config.to_dict()
    special: set[int] = set()
    for name, value in settings.items():
        if name.endswith("token_id") and value is not None:
            special.update(value if isinstance(value, (list, tuple)) else [value])
    usual = torch.tensor([token for token in range(min(config.vocab_size, 1000)) if token not in special])
    window = settings.get("sliding_window") or 0
    first, longest, last = PROBE_LENGTHS
    if window <= LONGEST_PROBE:
        longest = max(longest, window + 4)  # ModernBERT sees one further than its window says
    generator = torch.Generator().manual_seed(0)
    return [usual[torch.randint(len(usual), (length,), generator=generator)] for length in (first, longest, last)]


def padded_rows(rows: list[Tensor], inner: PreTrainedModel) -> dict[str, Any]:
    """Inputs of rows of token ids, padded to the longest: (rows, longest)."""
    pad = inner.config.get_text_config().to_dict().get("pad_token_id") or 0
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return _as_taken({"input_ids": ids.to(inner.device), "attention_mask": mask.to(inner.device)}, inner)


def flat_rows(rows: list[Tensor], inner: PreTrainedModel) -> dict[str, Any]:
    """Inputs of rows of token ids, end to end: (1, tokens), as `tasks.batch.Batch` has them."""
    lengths = torch.tensor([len(row) for row in rows])
    starts = nn.functional.pad(lengths.cumsum(0), (1, 0)).int().to(inner.device)
    longest = int(lengths.max())
    inputs = {
        "input_ids": torch.cat(rows)[None].to(inner.device),
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None].to(inner.device),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return _as_taken(inputs, inner)


def _as_taken(inputs: dict[str, Any], inner: PreTrainedModel) -> dict[str, Any]:
    return as_single_choices(inputs) if takes_choices(inner) else inputs


def relative_difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors of a shape, relative to the largest value of the first; it may be NaN."""
    return ((one - other).abs().max() / one.abs().max()).item()


def rounding_of(dtype: torch.dtype) -> float:
    """The relative difference below which outputs are the same: rounding adds up over layers."""
    return 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
