"""Loss of a language model with the output head run only where a label stands, in chunks, never with all logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ftscale.models.probing import device_kind, transformers_model, without_traces

IGNORED = -100
"""The label of a position outside the loss."""

CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Size of a chunk's float32 logits. One CPU thread, 4096 rows of 512, a vocabulary of 32k, bfloat16, a frozen head:
1.53 s with 64 rows in a chunk, 1.20 with 128 (these 16 MiB), 1.18 with 256, 1.20 with 512. All logits at once: 3.4 s,
and 1522 MiB against 64."""
LEAST_ROWS = 128
"""Fewest rows of a chunk, however large the vocabulary, for the head's weight is read anew for each: 512 rows of 896
and a vocabulary of 151k took 3.5 s with 16 rows in a chunk, 2.4 with 32, 1.8 with 64, 1.5 with 128."""

SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
"""Config fields that multiply or divide logits: Cohere, Granite and HyperCLOVA X, Falcon-H1, Muse."""
CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Config fields of a soft cap, `cap * tanh(logits / cap)`: Gemma 2 and its kin, RecurrentGemma."""

FP16_SHIFT = 1024.0
"""Softmax gradients are multiplied by this in float16, whose smallest normal number is 6e-5."""


def lm_loss(model: nn.Module, inputs: dict[str, Any], labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Cross entropy summed over all labels: () float32, with its graph (also where there is no label at all).

    inputs: what the model's forward takes, without labels. labels: (batch, time) int64, aligned with the head's
    positions (the label at t is what position t must predict; nothing is shifted here), -100 outside the loss.
    weights: (n,) float32, the factor of each label's loss in row-major order; None = 1.

    The gradient is formed in the forward pass, chunk by chunk, so the backward pass runs once only.
    """
    head, finish = _known_head(model, inputs)
    if head is None or finish is None:
        logits, targets = _selected_logits(model, inputs, labels)
        return _summed(logits.float(), targets, weights)
    seen = _states_at_head(model, head, inputs)
    index, targets = _supervised(labels)
    states = seen.aligned(labels)
    rows = _rows_of_chunk(head, states)
    weight = _plain_weight(head)
    if weight is None or not torch.is_grad_enabled():
        return _sum_of_chunks(seen.run(head), finish, states, index, targets, rows, weights)
    return _LinearLoss.apply(states, weight, head.bias, index, targets, finish, seen.dtype(weight), rows, weights)


@torch.no_grad()
def lm_target_losses(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each label and whether it has the highest logit: (n,) float32, (n,) bool; row-major order, no graph.

    Arguments as for `lm_loss`.
    """
    head, finish = _known_head(model, inputs)
    if head is None or finish is None:
        logits, targets = _selected_logits(model, inputs, labels)
        return F.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(-1) == targets
    seen = _states_at_head(model, head, inputs)
    index, targets = _supervised(labels)
    states, run = seen.aligned(labels), seen.run(head)
    losses, correct = [states.new_zeros(0, dtype=torch.float32)], [targets.new_zeros(0, dtype=torch.bool)]
    for chunk, of_chunk in _chunks(index, targets, _rows_of_chunk(head, states)):
        logits = finish(run(states[chunk]))
        losses.append(F.cross_entropy(logits, of_chunk, reduction="none"))
        correct.append(logits.argmax(-1) == of_chunk)
    return torch.cat(losses), torch.cat(correct)


def lm_log_probs(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
    """The log-probability of each label: (n,) float32 with its graph, in row-major order. Arguments as for `lm_loss`.

    Logits are made in chunks, and again in the backward pass.
    """
    head, finish = _known_head(model, inputs)
    if head is None or finish is None:
        logits, targets = _selected_logits(model, inputs, labels)
        return -F.cross_entropy(logits.float(), targets, reduction="none")
    seen = _states_at_head(model, head, inputs)
    index, targets = _supervised(labels)
    states, run = seen.aligned(labels), seen.run(head)

    def of_rows(rows: Tensor, of_chunk: Tensor) -> Tensor:
        return -F.cross_entropy(finish(run(rows)), of_chunk, reduction="none")

    chunks = _chunks(index, targets, _rows_of_chunk(head, states)) or [(index, targets)]
    return torch.cat([checkpoint(of_rows, states[chunk], of, use_reentrant=False) for chunk, of in chunks])


def lm_target_logits(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Logits where a label stands, chunk by chunk: (rows, vocabulary) float32 with their graph, and for which labels.

    Labels are numbered in row-major order. Arguments as for `lm_loss`.
    """
    head, finish = _known_head(model, inputs)
    if head is None or finish is None:
        logits, _ = _selected_logits(model, inputs, labels)
        yield logits.float(), slice(0, len(logits))
        return
    seen = _states_at_head(model, head, inputs)
    index, _ = _supervised(labels)
    states, run, start = seen.aligned(labels), seen.run(head), 0
    for chunk in index.split(_rows_of_chunk(head, states)):
        yield finish(run(states[chunk])), slice(start, start + len(chunk))
        start += len(chunk)


def lm_states(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """What the head reads: (batch, time, hidden) with its graph; the head itself has next to nothing to do.

    inputs: as for `lm_loss`; positions of tokens that an adapter puts in front are left out.
    """
    head = transformers_model(model).get_output_embeddings()
    assert head is not None, "a language model has a head"
    states = _states_at_head(model, head, inputs).aligned(inputs["input_ids"])
    return states.unflatten(0, tuple(inputs["input_ids"].shape))


def head_is_known(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether this module knows what the model does with the output of its head, so that it can do it in chunks.

    The first call for a head runs the model once without gradients, with rows of its own at the head, and compares the
    model's logits with ours; the answer is kept. Otherwise the model's own code makes the logits of supervised rows.
    """
    return _known_head(model, inputs)[1] is not None


def treat_head_like(model: nn.Module, other: nn.Module | None) -> None:
    """Take over what is known of another model's head of the same architecture, where this one cannot be tried out.

    `other` must have gone through `lm_loss` or `head_is_known` once; None: nothing is known, as of a sharded head.
    """
    head = transformers_model(model).get_output_embeddings()
    known = transformers_model(other).get_output_embeddings() if other is not None else None
    if head is not None:
        _finishes[head] = _finishes[known] if known is not None else None
        if known in _whole_heads:
            _whole_heads.add(head)


# ---------------------------------------------------------------- what the head sees


@dataclass(frozen=True)
class _Seen:
    """The states that the head would have seen, and the autocast type it would have run in (None: no autocast)."""

    states: Tensor
    autocast: torch.dtype | None

    def aligned(self, labels: Tensor) -> Tensor:
        """(positions of labels, hidden); virtual tokens that an adapter puts in front have no label."""
        batch, time = labels.shape
        return self.states.reshape(batch, -1, self.states.shape[-1])[:, -time:].flatten(0, 1)

    def dtype(self, weight: Tensor) -> torch.dtype:
        return weight.dtype if self.autocast is None else self.autocast

    def run(self, head: nn.Module) -> Callable[[Tensor], Tensor]:
        """The head as the model would have called it."""

        def call(states: Tensor) -> Tensor:
            with torch.autocast(states.device.type, dtype=self.autocast, enabled=self.autocast is not None):
                return head(states)

        return call


def _states_at_head(model: nn.Module, head: nn.Module, inputs: dict[str, Any]) -> _Seen:
    """Run the model with (almost) nothing for its head to do."""
    # no row at all is well defined for nn.Linear; a quantised kernel gets one
    least = 0 if _plain_weight(head) is not None else 1
    with _instead_at(head, lambda states: states[..., :least, :]) as seen:
        model(**inputs)
    return seen[0]


def _selected_logits(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, vocabulary) made by the model's own code, and their labels (n,)."""
    index, targets = _supervised(labels)
    head = transformers_model(model).get_output_embeddings()
    if head is not None and head not in _whole_heads:
        with _instead_at(head, lambda states: _Seen(states, None).aligned(labels)[index][None]):
            return model(**inputs).logits[0], targets
    logits = model(**inputs).logits
    return _Seen(logits, None).aligned(labels)[index], targets


@contextmanager
def _instead_at(head: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[list[_Seen]]:
    """Collect what comes to the head, and hand it `change` of that instead."""
    seen: list[_Seen] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = args
        device = states.device.type
        seen.append(_Seen(states, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None))
        return (change(states), *others)

    handle = head.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _supervised(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Row-major positions that have a label, and the labels: (n,), (n,)."""
    flat = labels.reshape(-1)
    index = (flat != IGNORED).nonzero().squeeze(1)
    return index, flat[index]


# ---------------------------------------------------------------- what the model does after the head


@dataclass(frozen=True)
class _Finish:
    """What makes logits of the head's output: `cap * tanh((output + bias) * scale / cap)` in float32."""

    scale: float = 1.0
    cap: float | None = None
    bias: Tensor | None = None

    def __call__(self, output: Tensor) -> Tensor:
        logits = output.float()
        if self.bias is not None:
            logits = logits + self.bias
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def in_place(self, logits: Tensor) -> Tensor:
        """The same over float32 memory that nobody else reads."""
        if self.bias is not None:
            logits.add_(self.bias)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def chain(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient of the logits into that of the head's output, in place; overwrites `logits` too."""
        if self.cap is not None:
            gradient.mul_(logits.div_(self.cap).square_().neg_().add_(1.0))  # tanh' = 1 - tanh^2
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


_finishes: WeakKeyDictionary[nn.Module, _Finish | None] = WeakKeyDictionary()
_whole_heads: WeakSet[nn.Module] = WeakSet()
"""Heads of models that do not take fewer rows at the head than they have positions."""


def _known_head(model: nn.Module, inputs: dict[str, Any]) -> tuple[nn.Module | None, _Finish | None]:
    inner = transformers_model(model)
    head = inner.get_output_embeddings()
    if head is None:
        return None, None
    if any(parameter.numel() == 0 or hasattr(parameter, "ds_shape") for parameter in head.parameters()):
        # a weight partitioned over ranks is whole only inside the model's own forward; so it stays for this head, even
        # if the weight turns up whole between two steps, as ZeRO-3's do after a checkpoint is read
        _finishes[head] = None
    elif head not in _finishes:
        _finishes[head] = _find_finish(model, inner, head, inputs)
    return head, _finishes[head]


def _find_finish(model: nn.Module, inner: PreTrainedModel, head: nn.Module, inputs: dict[str, Any]) -> _Finish | None:
    """The one known way from the head's output to the model's logits, or None."""
    with without_traces(model):
        try:
            with _instead_at(head, _telling_rows) as seen:
                logits = model(**inputs).logits
            output = seen[0].run(head)(_telling_rows(seen[0].states))
        except (IndexError, RuntimeError, TypeError, ValueError):
            _whole_heads.add(head)
            return None
    if len(seen) != 1 or logits.shape != output.shape:
        _whole_heads.add(head)
        return None
    matching = (finish for finish in _candidates(inner) if _same(finish(output), logits.float(), output.dtype))
    return next(matching, None)


def _telling_rows(states: Tensor) -> Tensor:
    """(1, rows, hidden): random rows, one each for small logits, which tell a scale, up to far beyond any soft cap."""
    sizes = torch.tensor([0.1, 1.0, 10.0, 100.0, 1000.0])
    rows = torch.randn(1, len(sizes), states.shape[-1], generator=torch.Generator().manual_seed(0))
    return (rows * sizes[:, None]).to(states)


def _candidates(inner: PreTrainedModel) -> list[_Finish]:
    """What the config's known fields may mean, the likeliest first."""
    fields = {**inner.config.to_dict(), **inner.config.get_text_config(decoder=True).to_dict()}
    given = [fields[name] for name in SCALES if fields.get(name)]
    scales = [*given, *(1.0 / value for value in given), 1.0]
    caps = [*(fields[name] for name in CAPS if fields.get(name)), None]
    bias = dict(inner.named_buffers(recurse=False)).get("final_logits_bias")  # Marian's is not zero, BART's is
    if bias is not None and not bias.any():
        bias = None
    return [_Finish(float(scale), cap, bias) for scale, cap in product(scales, caps)]


def _same(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    """Up to rounding, each row against its own largest logit."""
    size = theirs.abs().amax(-1)
    return bool(((ours - theirs).abs().amax(-1) <= max(1e-5, 4 * torch.finfo(dtype).eps) * size).all())


# ---------------------------------------------------------------- the loss in chunks


def _plain_weight(head: nn.Module) -> Tensor | None:
    """The weight of a head that is nothing but a matrix product; None for LoRA layers, quantised weights, wrappers."""
    return head.weight if type(head) is nn.Linear else None


def _rows_of_chunk(head: nn.Module, states: Tensor) -> int:
    vocabulary = max((part.out_features for part in head.modules() if isinstance(part, nn.Linear)), default=1)
    size = CHUNK_BYTES.get(device_kind(states), CHUNK_BYTES["cuda"])
    return max(LEAST_ROWS, size // (4 * vocabulary))


def _chunks(index: Tensor, targets: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(index.split(rows), targets.split(rows), strict=True)) if len(index) else []


def _summed(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return F.cross_entropy(logits, targets, reduction="sum")
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


def _sum_of_chunks(
    run: Callable[[Tensor], Tensor],
    finish: _Finish,
    states: Tensor,
    index: Tensor,
    targets: Tensor,
    rows: int,
    weights: Tensor | None,
) -> Tensor:
    """Any head, called chunk by chunk and again in the backward pass."""

    def loss_of(rows_of_chunk: Tensor, of_chunk: Tensor, weights_of_chunk: Tensor | None) -> Tensor:
        return _summed(finish(run(rows_of_chunk)), of_chunk, weights_of_chunk)

    chunks = _chunks(index, targets, rows) or [(index, targets)]  # no label: the head still belongs to the graph
    factors = [None] * len(chunks) if weights is None else weights.split(rows)
    losses = [
        checkpoint(loss_of, states[chunk], of_chunk, factor, use_reentrant=False)
        for (chunk, of_chunk), factor in zip(chunks, factors, strict=True)
    ]
    return torch.stack(losses).sum()


class _LinearLoss(torch.autograd.Function):
    """Cross entropy of `finish(states[index] @ weight.T + bias)`, summed; gradients are formed in the forward pass.

    As in Liger Kernel (arXiv:2410.10989) and Cut Cross-Entropy (arXiv:2411.09009), without a kernel of our own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        index: Tensor,
        targets: Tensor,
        finish: _Finish,
        dtype: torch.dtype,
        rows: int,
        weights: Tensor | None,
    ) -> Tensor:
        trained = zip((states, weight, bias), ctx.needs_input_grad, strict=False)
        gradients = [torch.zeros_like(tensor) if needed else None for tensor, needed in trained]
        with torch.autocast(states.device.type, enabled=False):
            total = _loss_and_gradients(states, weight, bias, index, targets, finish, dtype, rows, weights, gradients)
        ctx.gradients = gradients
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradient of lm_loss is formed once; it cannot go backward a second time")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (None if gradient is None else gradient.mul_(of_loss) for gradient in gradients)
        return (*scaled, None, None, None, None, None, None)


def _loss_and_gradients(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    index: Tensor,
    targets: Tensor,
    finish: _Finish,
    dtype: torch.dtype,
    rows: int,
    weights: Tensor | None,
    gradients: list[Tensor | None],
) -> Tensor:
    """The summed loss; adds into the gradients of states, weight and bias that are not None.

    Chunks write into the same memory: fresh memory of this size costs as much time as reading it.
    """
    of_states, of_weight, of_bias = gradients
    weight = weight.to(dtype)
    rows = min(rows, len(index))
    outputs, logits, softmax = _buffers(rows, weight)
    shift = FP16_SHIFT if dtype == torch.float16 else 1.0
    total = states.new_zeros((), dtype=torch.float32)
    chunks = _chunks(index, targets, rows)
    factors = [None] * len(chunks) if weights is None else weights.split(rows)
    for (chunk, of_chunk), factor in zip(chunks, factors, strict=True):
        n = len(chunk)
        inputs = states[chunk].to(dtype)
        output, logit, gradient = outputs[:n], logits[:n], softmax[:n]
        torch.mm(inputs, weight.t(), out=output)
        if output is not logit:
            logit.copy_(output)
        if bias is not None:
            logit.add_(bias)
        finish.in_place(logit)
        losses = _losses_and_softmax(logit, of_chunk, gradient)
        total += (losses if factor is None else losses * factor).sum()
        gradient.scatter_add_(1, of_chunk[:, None], gradient.new_full((n, 1), -1.0))  # softmax - one-hot
        if factor is not None:
            gradient.mul_(factor[:, None])
        finish.chain(gradient, logit)
        if of_bias is not None:
            of_bias.add_(gradient.sum(0))
        if shift != 1.0:
            gradient.mul_(shift)
        product_of = output.copy_(gradient) if dtype != torch.float32 else gradient
        if of_states is not None:
            of_states[chunk] = (product_of @ weight).to(of_states.dtype).div_(shift)
        if of_weight is not None:
            _add_product(of_weight, product_of, inputs, 1.0 / shift)
    return total


def _buffers(rows: int, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, vocabulary): the head's output in the type of the product, logits and softmax in float32."""
    shape = (rows, weight.shape[0])
    logits = weight.new_empty(shape, dtype=torch.float32)
    output = logits if weight.dtype == torch.float32 else weight.new_empty(shape)
    return output, logits, torch.empty_like(logits)


def _losses_and_softmax(logits: Tensor, targets: Tensor, softmax: Tensor) -> Tensor:
    """Each row's loss; fills `softmax`.

    The log of the sum of exponentials comes from the largest entry, max - log softmax(max), which cannot underflow, so
    that one fused kernel and two reductions do: 45 ms of 460 for 2048 rows of 32k, against 130 for logsumexp and exp.
    """
    torch.softmax(logits, -1, out=softmax)
    log_sum = logits.amax(-1) - softmax.amax(-1).log()
    return log_sum - logits.gather(1, targets[:, None]).squeeze(1)


def _add_product(of_weight: Tensor, gradient: Tensor, inputs: Tensor, factor: float) -> None:
    """of_weight += factor * gradient.T @ inputs.

    Adding up in bfloat16 over 32 chunks was as exact as one product of all rows (relative error 2.5e-3 and 2.2e-3).
    """
    if of_weight.dtype == inputs.dtype:
        of_weight.addmm_(gradient.t(), inputs, alpha=factor)
    else:
        of_weight.add_(torch.mm(gradient.t(), inputs), alpha=factor)
