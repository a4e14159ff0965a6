"""Flat or padded rows: which of them a model takes, and the hooks that let pooling models take flat ones."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ftscale.base.errors import UserError
from ftscale.models.attention import FLAT, use_flat, use_padded
from ftscale.models.choices import as_single_choices, takes_choices
from ftscale.models.probing import logits_of, transformers_model, without_traces

REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model raises that was not made for flat rows."""

PROBE_LENGTHS = (5, 9, 3)
LONGEST_PROBE = 256
"""The probe goes past a sliding window if the window is no longer than this many tokens."""
AFTER_ATTENTION = re.compile(r"\blayer\.(\d+)\.attention\.output$")
"""In BERT and its kin: the module that takes a block's attention and input, from where on each token is by itself."""


def choose_layout(
    model: nn.Module,
    *,
    wanted: Literal["auto", "flat", "padded"],
    attention: str,
    pooled: bool,
    encoder_decoder: bool,
    every_token: bool = False,
    probed: nn.Module | None = None,
) -> Literal["flat", "padded"]:
    """Settle the layout of batches, and prepare the model for flat ones.

    Call it on the bare or PEFT-wrapped model, before it is distributed. `wanted` is `batch.layout`, `attention` is
    `model.attention`; `pooled`: the head makes one vector a sample out of the hidden states (see `attach_unflatten`).
    `every_token`: the states of all tokens are read below the head, so that none may be left out.
    `probed`: a model of the same architecture to try out instead, where this one's weights are sharded.

    Raises UserError where flat rows are asked for and impossible.
    """
    if wanted == "padded":
        return "padded"
    problem = _needs_padding(attention, encoder_decoder=encoder_decoder) or why_not_flat(
        model if probed is None else probed, pooled=pooled
    )
    if problem and wanted == "flat":
        raise UserError(f"batch.layout = flat cannot be used: {problem}; set batch.layout: auto or padded.")
    if problem:
        return "padded"
    first_only = pooled and not every_token and first_tokens_suffice(model if probed is None else probed)
    if not attention.startswith("flash_attention"):  # which takes the same batches by itself
        use_flat(model)
    _attach(model, pooled=pooled, first_only=first_only)
    return "flat"


def supports_flat(model: nn.Module, *, pooled: bool) -> bool:
    """Whether the model gives the same outputs for flat rows as for padded ones; leaves it as it was."""
    return why_not_flat(model, pooled=pooled) is None


def why_not_flat(model: nn.Module, *, pooled: bool) -> str | None:
    """The reason for which the model does not take flat rows, or None where it does; leaves it as it was.

    A probe: three ragged rows of tokens, padded and flat, must give the same logits up to rounding.
    """
    inner = transformers_model(model)
    if problem := _known_problem(inner):
        return problem
    rows = _probe_rows(inner)
    implementation = inner.config._attn_implementation
    handles: list[RemovableHandle] = []
    try:
        with without_traces(model):
            if implementation.startswith("flash_attention"):  # a probe may run where the kernel cannot
                inner.set_attn_implementation("sdpa")
            padded = _real_logits(logits_of(model(**_padded(rows, inner))), rows, pooled=pooled)
            use_flat(model)
            handles = _attach(model, pooled=pooled)
            flat = logits_of(model(**_flat(rows, inner))).flatten(0, -2)
    except REFUSALS as error:
        return f"{type(inner).__name__} does not take flat rows ({str(error).splitlines()[0][:200] or type(error)})"
    finally:
        for handle in handles:
            handle.remove()
        use_padded(model)
        if inner.config._attn_implementation != implementation:
            inner.set_attn_implementation(implementation)
    return _difference(inner, padded.float(), flat.float())


def first_tokens_suffice(model: nn.Module) -> bool:
    """Whether the head above flat rows reads each sample's first token alone; leaves the model as it was.

    The last block then need not make the others. A probe: the logits must be the same without them. False for models
    unlike BERT, where it is not tried.
    """
    inner = transformers_model(model)
    if _last_after_attention(inner) is None:
        return False
    rows, logits = _probe_rows(inner), []
    implementation = inner.config._attn_implementation
    use_flat(model)
    try:
        for first_only in (False, True):
            handles = _attach(model, pooled=True, first_only=first_only)
            try:
                with without_traces(model):
                    logits.append(logits_of(model(**_flat(rows, inner))).float())
            except REFUSALS:
                return False
            finally:
                for handle in handles:
                    handle.remove()
    finally:
        if implementation != FLAT:
            use_padded(model)
    whole, first = logits
    telling = bool((whole - whole[:1]).any())  # a head of zeros gives the same whatever it reads
    return telling and _difference(inner, whole, first) is None


def attach_unflatten(model: nn.Module, *, first_only: bool = False) -> list[RemovableHandle]:
    """Give a head that pools (batch, time, hidden) what it expects when a flat batch is in the forward.

    The encoder runs flat; its hidden states go on as (samples, longest, hidden), and the head gets an attention mask
    of (samples, longest). `first_only`: the last block drops all but the first tokens after its attention, and hidden
    states go on as (samples, 1, hidden). Padded batches pass unchanged. Returns the hooks' handles.

    Raises ValueError for a model without a head above its base model.
    """
    inner = transformers_model(model)
    base = inner.base_model
    if base is inner:
        raise ValueError("it has no head above its base model")
    parts = dict(base.named_children())
    encoder = parts["encoder"] if "encoder" in parts and "pooler" in parts else base
    batch = _FlatBatch()
    last = _last_after_attention(inner) if first_only else None
    return [
        *([] if last is None else _FirstTokens().attach(*last)),
        inner.register_forward_pre_hook(batch.enter, with_kwargs=True),
        inner.register_forward_hook(batch.leave, always_call=True),
        base.register_forward_pre_hook(batch.without_mask, with_kwargs=True),
        encoder.register_forward_hook(batch.unflatten),
    ]


class _FlatBatch:
    """The samples of the flat batch that is in the forward; empty for a padded one."""

    def __init__(self) -> None:
        self.starts: Tensor | None = None
        self.longest = 0

    def enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        self.starts = kwargs.get("cu_seq_lens_q")
        if self.starts is None:
            return None
        self.longest = kwargs["max_length_q"]
        mask = torch.arange(self.longest, device=self.starts.device) < self.starts.diff()[:, None]
        return args, {**kwargs, "attention_mask": mask.long()}

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.starts = None

    def without_mask(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self.starts is None or "attention_mask" not in kwargs:
            return None
        return args, {**kwargs, "attention_mask": None}

    def unflatten(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.starts is None:
            return None
        if isinstance(output, Tensor):
            return self._by_sample(output)
        if isinstance(output, tuple):
            return (self._by_sample(output[0]), *output[1:])
        output.last_hidden_state = self._by_sample(output.last_hidden_state)
        return output

    def _by_sample(self, hidden: Tensor) -> Tensor:
        """(1, tokens, hidden) to (samples, longest, hidden), zeros at the ends; first tokens: (samples, 1, hidden)."""
        assert self.starts is not None
        lengths = self.starts.diff()
        samples = len(lengths)
        if hidden.shape[1] == samples:
            return hidden.transpose(0, 1)
        # a token's place in the padded table: its place in the row plus the padding of the samples before its own
        padding = torch.arange(samples, device=hidden.device) * self.longest - self.starts[:-1]
        places = torch.arange(hidden.shape[1], device=hidden.device) + padding.repeat_interleave(lengths)
        table = hidden.new_zeros(samples * self.longest, hidden.shape[-1])
        return table.index_copy(0, places, hidden[0]).unflatten(0, (samples, self.longest))


class _FirstTokens:
    """Lets only the first token of each sample of a flat batch go on after a block's attention.

    It finds the samples in the block's own arguments, so that it works in a recomputation as well.
    """

    def __init__(self) -> None:
        self.starts: Tensor | None = None

    def attach(self, attention: nn.Module, after: nn.Module) -> list[RemovableHandle]:
        return [
            attention.register_forward_pre_hook(self.enter, with_kwargs=True),
            after.register_forward_pre_hook(self.select),
        ]

    def enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.starts = kwargs.get("cu_seq_lens_q")

    def select(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.starts is None:
            return None
        return tuple(states.index_select(1, self.starts[:-1]) for states in args)


def _last_after_attention(inner: PreTrainedModel) -> tuple[nn.Module, nn.Module] | None:
    """The attention of the last block, and the module in it from where on each token is by itself."""
    found = {int(match[1]): name for name, _ in inner.named_modules() if (match := AFTER_ATTENTION.search(name))}
    if not found:
        return None
    name = found[max(found)]
    return inner.get_submodule(name.rpartition(".")[0]), inner.get_submodule(name)


def _attach(model: nn.Module, *, pooled: bool, first_only: bool = False) -> list[RemovableHandle]:
    inner = transformers_model(model)
    handles = attach_unflatten(model, first_only=first_only) if pooled else []
    if offset := _position_offset(inner):
        handles.append(inner.register_forward_pre_hook(_AddToPositions(offset), with_kwargs=True))
    return handles


class _AddToPositions:
    """RoBERTa and its kin count positions from `padding_idx + 1`; flat batches count from 0."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if kwargs.get("cu_seq_lens_q") is None:
            return None
        return args, {**kwargs, "position_ids": kwargs["position_ids"] + self.offset}


def _position_offset(inner: PreTrainedModel) -> int:
    for name, module in inner.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _needs_padding(attention: str, *, encoder_decoder: bool) -> str | None:
    if encoder_decoder:
        return "an encoder-decoder needs padded rows"
    if attention not in ("auto", FLAT) and not attention.startswith("flash_attention"):
        return f"model.attention = {attention} needs padded rows"
    return None


def _known_problem(inner: PreTrainedModel) -> str | None:
    if inner.main_input_name != "input_ids":
        return "its inputs are not tokens"
    if inner.config.is_encoder_decoder:
        return "an encoder-decoder needs padded rows"
    if inner.config.get_text_config().to_dict().get("attention_chunk_size"):  # lives in the mask alone, like Llama 4's
        return "it attends in chunks"
    if any(parameter.numel() == 0 for parameter in inner.parameters()):
        return "its weights are partitioned, so that it cannot be probed"
    return None


def _probe_rows(inner: PreTrainedModel) -> list[Tensor]:
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


def _padded(rows: list[Tensor], inner: PreTrainedModel) -> dict[str, Any]:
    pad = inner.config.get_text_config().to_dict().get("pad_token_id") or 0
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return _as_taken({"input_ids": ids.to(inner.device), "attention_mask": mask.to(inner.device)}, inner)


def _flat(rows: list[Tensor], inner: PreTrainedModel) -> dict[str, Any]:
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


def _real_logits(logits: Tensor, rows: list[Tensor], *, pooled: bool) -> Tensor:
    """(samples or tokens, classes) of padded rows."""
    if pooled:
        return logits
    return torch.cat([logits[sample, : len(row)] for sample, row in enumerate(rows)])


def _difference(inner: PreTrainedModel, padded: Tensor, flat: Tensor) -> str | None:
    name = type(inner).__name__
    if padded.shape != flat.shape:
        return f"{name} makes {tuple(flat.shape)} outputs of flat rows and {tuple(padded.shape)} of padded ones"
    # rounding adds up over layers: a few units of the last place in 16 bits
    tolerance = 1e-4 if inner.dtype == torch.float32 else 4 * torch.finfo(inner.dtype).eps
    difference = ((padded - flat).abs().max() / padded.abs().max()).item()
    if difference < tolerance:  # false for NaN
        return None
    return f"{name} gives other outputs for flat rows than for padded ones (relative difference {difference:.1e})"
