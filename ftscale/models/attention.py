"""Attention over flat rows: samples laid end to end in one row, each attending to itself alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ftscale.models.masks import Draw, Drop, draw_of
from ftscale.models.probing import device_kind, transformers_model

FLAT = "ftscale_flat"
"""The name under which transformers knows this attention."""
BY_ROW = "ftscale_by_row"
"""The same of attention over padded rows whose dropout draws by row; without dropout it is torch's own (sdpa)."""

EXPLICIT_LENGTH = 256
"""Longest sample for which plain matrix products are used in bfloat16 on a CPU. Forward and backward of 2048 tokens, 8
heads of 64, one thread (ms), products against torch's fused kernel: 14 / 52 at samples of 128, 27 / 60 at 256, 45 / 94
at 512. Beyond 256 the weights, which are kept for the backward pass, take more memory than the time is worth."""
BLOCK = 128
"""Queries of a block. Forward and backward of one causal sample, 8 heads of 64, one thread (ms), blocks against torch's
fused kernel: 6.0 / 11.9 at 320 tokens, 17 / 27 at 512, 44 / 61 at 1024, 173 / 220 at 2048."""

NO_MATTER = frozenset(
    ("position_ids", "cache_position", "use_cache", "return_dict", "output_hidden_states", "output_router_logits")
    + ("num_items_in_batch", "logits_to_keep")
)
"""Arguments that models hand down and that change nothing here."""

_implementation_before: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def use_flat(model: nn.Module) -> None:
    """Make the model (bare, or inside PEFT) take flat batches only, until `use_padded`.

    A flat batch is (1, tokens) with `position_ids` that restart at each sample and transformers'
    `FlashAttentionKwargs`: `cu_seq_lens_q`, `cu_seq_lens_k` (samples + 1,) int32; `max_length_q`, `max_length_k` int.

    Raises ValueError for a model that does not take its attention from transformers' AttentionInterface.
    """
    inner = transformers_model(model)
    before = inner.config._attn_implementation
    if before == FLAT:
        return
    _implementation_before[inner] = before
    inner.set_attn_implementation(FLAT)
    parts = [part for part in inner.modules() if isinstance(part, PreTrainedModel)]
    if any(part.config._attn_implementation != FLAT for part in parts):
        use_padded(model)
        raise ValueError("its attention cannot be replaced through transformers' AttentionInterface")


def use_padded(model: nn.Module) -> None:
    """Undo `use_flat`."""
    inner = transformers_model(model)
    if inner in _implementation_before:
        inner.set_attn_implementation(_implementation_before.pop(inner))


@contextmanager
def padded_attention(model: nn.Module) -> Iterator[None]:
    """Inside, the model has the attention it had before `use_flat`: padded rows and `generate` work."""
    flat = transformers_model(model).config._attn_implementation == FLAT
    if flat:
        use_padded(model)
    try:
        yield
    finally:
        if flat:
            use_flat(model)


def flat_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' AttentionInterface wants it, for a flat batch.

    query: (1, heads, tokens, dim); key, value: (1, key heads, tokens, dim). Returns (1, tokens, heads, dim).
    `sliding_window` counts the token itself: distances below it are seen, as in transformers' flash attention.

    Raises ValueError for a batch that is not flat and for an argument that it cannot honour.
    """
    _refuse_unknown(others, attention_mask)
    tokens = query.shape[2]
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1 or key.shape[2] != tokens:
        raise ValueError(f"{FLAT} takes flat batches only: one row, with cu_seq_lens_q and max_length_q, and no cache")
    rule = _Rule(
        causal=module.is_causal if is_causal is None else is_causal,
        window=sliding_window,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        dropout=dropout,
    )
    draw = draw_of(module) if dropout else None
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # (tokens, heads, dim)
    if device_kind(query) == "cuda" and softcap is None and not dropout and _flash_dtype(query) is not None:
        return _by_flash_kernel(rows, rule, cu_seq_lens_q, max_length_q).unsqueeze(0), None
    lengths = cu_seq_lens_q.diff().tolist()
    if sum(lengths) != tokens:
        raise ValueError(f"cu_seq_lens_q ends at {sum(lengths)}, the row at {tokens}")
    return _by_sample(rows, rule, lengths, draw).unsqueeze(0), None


def use_row_attention(model: nn.Module) -> Callable[[], None]:
    """Have padded rows draw their attention's dropout by row; returns what undoes it.

    Nothing is changed where attention is not torch's own, or cannot be replaced through the AttentionInterface.
    """
    inner = transformers_model(model)
    before = inner.config._attn_implementation

    def undo() -> None:
        with padded_attention(model):
            inner.set_attn_implementation(before)

    if before != "sdpa":
        return lambda: None
    inner.set_attn_implementation(BY_ROW)
    if inner.config._attn_implementation == before:
        return lambda: None
    parts = [part for part in inner.modules() if isinstance(part, PreTrainedModel)]
    if any(part.config._attn_implementation != BY_ROW for part in parts):
        undo()
        return lambda: None
    return undo


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' AttentionInterface wants it, over padded rows.

    query: (samples, heads, queries, dim); key, value: (samples, key heads, keys, dim). Returns (samples, queries,
    heads, dim).
    """
    draw = draw_of(module) if dropout else None
    if draw is None:
        asked = {"scaling": scaling, "dropout": dropout, "is_causal": is_causal, "position_bias": position_bias}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **asked, **others)
    if others.get("softcap") is not None:
        raise ValueError(f"{BY_ROW} cannot honour softcap")
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    if key.shape[1] != heads:
        key, value = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is None and queries > 1 and (module.is_causal if is_causal is None else is_causal):
        attention_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = draw.drop(torch.softmax(scores, -1), dropout)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


def no_mask(*, use_vmap: bool = False, **others: Any) -> None:
    """A dense mask is never made. Raises ValueError where the model asks for one of its own shape."""
    if use_vmap:
        raise ValueError("the model lays a mask of its own over the attention")


AttentionInterface.register(FLAT, flat_attention)
AttentionMaskInterface.register(FLAT, no_mask)
AttentionInterface.register(BY_ROW, row_attention)
AttentionMaskInterface.register(BY_ROW, sdpa_mask)


class _Rule:
    """Who sees whom inside a sample, and how scores become weights."""

    def __init__(
        self, *, causal: bool, window: int | None, scaling: float, softcap: float | None, dropout: float
    ) -> None:
        self.causal = causal
        self.window = window
        self.scaling = scaling
        self.softcap = softcap
        self.dropout = dropout

    def has_window(self, length: int) -> bool:
        """Whether a sample of this length is longer than the sliding window."""
        return self.window is not None and length > self.window

    def seen(self, queries: range, keys: int, device: torch.device) -> Tensor | None:
        """(queries, keys) bool of one sample, for keys from 0 on; None where all is seen."""
        if not (self.causal or self.has_window(keys)):
            return None
        distance = torch.arange(queries.start, queries.stop, device=device)[:, None] - torch.arange(keys, device=device)
        seen = torch.ones_like(distance, dtype=torch.bool) if not self.causal else distance >= 0
        return seen if self.window is None else seen & (distance.abs() < self.window)


def _refuse_unknown(others: dict[str, Any], attention_mask: Tensor | None) -> None:
    given = (name for name, value in others.items() if value is not None and value is not False)
    refused = [name for name in given if name not in NO_MATTER]
    if attention_mask is not None:
        refused.append("attention_mask")
    if refused:
        raise ValueError(f"{FLAT} cannot honour {', '.join(refused)}")


def _by_sample(rows: list[Tensor], rule: _Rule, lengths: list[int], draw: Draw | None) -> Tensor:
    """One call for each run of neighbours of equal length, over views; (tokens, heads, dim).

    Padding neighbours of unlike lengths into one call was measured to be slower than calls of their own.
    """
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * samples for length, samples in runs]
    drops: Sequence[Drop | None] = [None] * len(runs)
    if draw is not None:
        drops = draw.of_attention(rule.dropout, runs=runs, heads=rows[0].shape[1])
    # split and cat, not slices: the backward pass of a slice fills a whole row with zeros
    parts = zip(*(states.split(sizes) for states in rows), strict=True)
    outputs = [
        _attend(*(part.unflatten(0, (samples, length)).transpose(1, 2) for part in run_parts), rule=rule, drop=drop)
        for (length, samples), run_parts, drop in zip(runs, parts, drops, strict=True)
    ]
    outputs = [output.transpose(1, 2).flatten(0, 1) for output in outputs]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, rule: _Rule, drop: Drop | None) -> Tensor:
    """(samples, heads, length, dim) from query, key and value of this shape, with the same or fewer key heads.

    `drop`: None = torch draws the dropout, where the rule has any.
    """
    length = query.shape[2]
    slow_kernel = device_kind(query) == "cpu" and query.dtype == torch.bfloat16
    if rule.softcap is not None or drop is not None or (slow_kernel and (length <= EXPLICIT_LENGTH or rule.dropout)):
        return _by_products(query, key, value, rule=rule, drop=drop)
    if slow_kernel:
        states = _with_all_heads(query, key, value)
        return _Blocks.apply(*states, rule).unflatten(0, query.shape[:2])
    seen = rule.seen(range(length), length, query.device) if rule.has_window(length) else None
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen,
        is_causal=rule.causal and seen is None,
        dropout_p=rule.dropout,
        scale=rule.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _by_products(query: Tensor, key: Tensor, value: Tensor, *, rule: _Rule, drop: Drop | None) -> Tensor:
    samples, heads, length, _ = query.shape
    query, key, value = _with_all_heads(query, key, value)
    bias = _bias(range(length), length, rule, query)
    if rule.softcap is None:
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=rule.scaling)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)) * (rule.scaling / rule.softcap)
        scores = torch.tanh(scores) * rule.softcap + bias
    weights = torch.softmax(scores, -1)
    if drop is not None:
        weights = drop(weights.unflatten(0, (samples, heads))).flatten(0, 1)
    else:
        weights = F.dropout(weights, rule.dropout, training=rule.dropout > 0)
    return torch.bmm(weights.to(value.dtype), value).unflatten(0, (samples, heads))


class _Blocks(torch.autograd.Function):
    """Attention by matrix products, some queries at a time, whose weights are made anew in the backward pass.

    As in FlashAttention (arXiv:2205.14135) no weights are kept, and a causal block leaves out the keys behind its end.
    query, key, value and the result: (samples x heads, length, dim). No dropout, no soft cap.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rule: _Rule) -> Tensor:
        output = torch.empty_like(query)
        for queries, keys in _blocks(query.shape[1], rule):
            weights = _block_weights(query, key, queries, keys, rule)
            output[:, queries] = torch.bmm(weights, value[:, keys])
        ctx.save_for_backward(query, key, value)
        ctx.rule = rule
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for queries, keys in _blocks(query.shape[1], ctx.rule):
            weights, of_block = _block_weights(query, key, queries, keys, ctx.rule), of_output[:, queries]
            of_value[:, keys].baddbmm_(weights.transpose(1, 2), of_block)
            of_weights = torch.bmm(of_block, value[:, keys].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query[:, queries] = torch.bmm(of_scores, key[:, keys])
            of_key[:, keys].baddbmm_(of_scores.transpose(1, 2), query[:, queries])
        return of_query.mul_(ctx.rule.scaling), of_key.mul_(ctx.rule.scaling), of_value, None


def _blocks(length: int, rule: _Rule) -> Iterator[tuple[slice, slice]]:
    """Queries of each block, and the keys that they may see."""
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        yield slice(start, stop), slice(0, stop if rule.causal else length)


def _block_weights(query: Tensor, key: Tensor, queries: slice, keys: slice, rule: _Rule) -> Tensor:
    bias = _bias(range(queries.start, queries.stop), keys.stop, rule, query)
    return torch.softmax(torch.baddbmm(bias, query[:, queries], key[:, keys].transpose(1, 2), alpha=rule.scaling), -1)


def _with_all_heads(*states: Tensor) -> list[Tensor]:
    """(samples x heads, length, dim) of query, key and value; key heads are repeated for their group of queries."""
    heads = states[0].shape[1]
    return [
        (part if part.shape[1] == heads else part.repeat_interleave(heads // part.shape[1], dim=1)).flatten(0, 1)
        for part in states
    ]


def _bias(queries: range, keys: int, rule: _Rule, like: Tensor) -> Tensor:
    """0 where a key is seen, -inf elsewhere: (queries, keys), or () where all is seen."""
    seen = rule.seen(queries, keys, like.device)
    if seen is None:
        return like.new_zeros(())
    return like.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))


def _flash_dtype(query: Tensor) -> torch.dtype | None:
    """The 16-bit type in which the variable-length flash kernel would run; None where it cannot."""
    autocast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if autocast else query.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= 256 else None


def _by_flash_kernel(rows: list[Tensor], rule: _Rule, cu_seq_lens: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (states.to(_flash_dtype(states)) for states in rows)
    reach = -1 if rule.window is None else rule.window - 1
    return varlen_attn(
        query,
        key,
        value,
        cu_seq_lens,
        cu_seq_lens,
        longest,
        longest,
        scale=rule.scaling,
        window_size=(reach, 0 if rule.causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
