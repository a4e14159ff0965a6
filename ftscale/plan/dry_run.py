"""One training step of the real model class on tensors without memory, watched by torch's own trackers.

The model is built on the meta device by the same code as in training, its weights become fake tensors, and the task's
loss runs forward and backward. Whole numbers of the batch (token ids, labels, boundaries of samples) stay real, so that
code that looks at them works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType, _ModState
from torch.utils.flop_counter import (
    FlopCounterMode,
    addmm_flop,
    baddbmm_flop,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from transformers import PreTrainedConfig

from ftscale.checks.model import empty_model, quiet
from ftscale.config import Config
from ftscale.methods.base import Method
from ftscale.modalities.collate import Layout
from ftscale.models.adapt import enable_checkpointing
from ftscale.models.companion import Companion, load_companion
from ftscale.models.freeze import set_training_mode
from ftscale.models.layout import choose_layout
from ftscale.models.lm_head import treat_head_like
from ftscale.models.load import load_model_config, load_small_twin
from ftscale.models.probing import pretending, transformers_model
from ftscale.models.shrink import DECODER_DEPTHS, depth_fields, shallow
from ftscale.models.trust import NO_TRUST, without_code
from ftscale.run.build_model import weights_dtype
from ftscale.run.dropout import choose_dropout
from ftscale.tasks.base import Task, frozen_models
from ftscale.tasks.batch import Batch, total_of
from ftscale.train.loop import TaskModule

Moment = dict[str, float]
"""Bytes alive at a moment of the step, by kind: weights, gradients, activations, logits."""

SHALLOW = 4
"""Blocks up to which a model runs whole. The tracker looks at every module at every operation, so that time grows with
the square of the depth: 80 blocks of a 70 B Llama took 550 s. Deeper models run twice, at two small depths, and every
moment of the step is a straight line in the number of equal blocks."""
ENOUGH = 8
"""Tokens of a row that show what a model does after its head."""
PERSISTENT = 100_000
"""stage3_param_persistence_threshold of ds_configs/zero3.json."""
BY_BLOCK = ("layers_to_transform", "layers_pattern", "layer_replication", "rank_pattern", "alpha_pattern")
"""Fields of adapters that treat blocks unlike each other."""


@dataclass(frozen=True)
class Sizes:
    """Weights of a model, counted."""

    elements: float
    bytes: float
    trained: float
    """Elements that train."""
    trained_bytes: float
    matrices: float
    """Elements of frozen linear layers, which a quantised base holds in few bits."""
    num_matrices: float
    largest_trained: float
    """Elements of the largest weight that trains."""
    largest_matrix: float
    """Elements of the largest frozen linear layer."""
    largest: float
    """Elements of the largest weight of all."""
    persistent: float
    """Elements of weights so small that ZeRO-3 keeps them whole, by PERSISTENT."""
    companions: float = 0.0
    """Bytes of the frozen models beside it that the loss calls, as if none were quantised."""


@dataclass(frozen=True)
class DryStep:
    """What one forward and backward pass takes on one device without any sharding."""

    moments: list[Moment]
    """The fullest moments: of the forward pass, of each part of the backward pass, and its end."""
    flops: float
    """Of forward and backward, as torch counts them (attention in full, also where it is causal)."""
    layout: Layout
    sizes: Sizes


class Probe:
    """A small real twin of a model: what only real numbers can tell (flat or padded, the output head)."""

    def __init__(self, config: Config, task: Task) -> None:
        self.twin = load_small_twin(config.model, auto_class=task.auto_class, settings=task.model_settings())

    def know_head(self, task: Task, batch: Batch) -> None:
        """Find out on a padded batch what the model does after its head."""
        vocabulary = self.twin.config.get_text_config().vocab_size

        writes = "writes_text" in task.settings.can  # of others, labels may be places among the tokens

        def short(value: Any) -> Any:
            return value[:, :ENOUGH] if writes and isinstance(value, Tensor) and value.ndim == 2 else value

        inputs, labels = {name: short(value) for name, value in batch.inputs.items()}, short(batch.labels)
        inputs["input_ids"] = inputs["input_ids"] % vocabulary
        if labels is not None:
            labels = torch.where(labels >= 0, labels % vocabulary, labels)
        batch = replace(batch, inputs=inputs, labels=labels)
        with torch.no_grad(), standing_in(task, _twin_of) as columns_of:
            task.loss(self.twin, replace(batch, extra={**batch.extra, **columns_of(batch, batch)}))


@contextmanager
def standing_in(task: Task, model_of: Callable[[Companion], nn.Module]) -> Iterator[Callable[[Batch, Batch], Any]]:
    """Inside, the task's frozen models are what `model_of` makes of each.

    Gives a function of a batch and of the same kind of batch padded: empty columns for the first, of the shapes that
    are computed for the second.
    """
    companions = frozen_models(task)
    for companion in companions:
        companion.module = model_of(companion)

    def columns(batch: Batch, padded: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            values = {column.name: column.compute(column.companion, padded) for column in task.computed()}
        return {name: value.new_zeros(len(batch), *value.shape[1:]) for name, value in values.items()}

    try:
        yield columns
    finally:
        for companion in companions:
            companion.module = None


def _twin_of(companion: Companion) -> nn.Module:
    model = without_code(companion.model)
    return load_small_twin(model, auto_class=companion.auto_class, settings=dict(companion.settings)).eval()


def _empty(companion: Companion, dtype: torch.dtype) -> nn.Module:
    """On the meta device; not quantised."""
    update = {"init": "random", "quantization": "none"}
    plain = replace(companion, model=companion.model.model_copy(update=update))
    with quiet(), torch.device("meta"):
        return load_companion(plain, dtype=dtype, trust=NO_TRUST)


def dry_step(
    config: Config,
    task: Method,
    batch: Any,
    *,
    probe: Probe | None,
    kind: str,
    accumulates: bool,
    sharded: bool,
) -> DryStep:
    """Run a step. `batch`: a function of the layout that makes the micro-batch.

    `probe`: None for tasks without tokens. `kind`: cpu or cuda, whose kernels are chosen. `accumulates`: gradients of
    another micro-batch are there already. `sharded`: weights come in pieces, so that the output head runs as a whole.
    """
    depth = _depth(config, task)
    period = _period(config, task)
    few = max(period, -(-config.trainable.last_blocks // period) * period)
    less, more = few + period, few + 2 * period
    deep = depth is not None and depth > max(SHALLOW, more) and _equal_blocks(config)
    run = partial(_run, config, task, batch, probe=probe, kind=kind, accumulates=accumulates, sharded=sharded)
    if not deep or depth is None:
        return run(depth=None).step
    share = (depth - less) / (more - less)
    shallow, deeper = run(depth=less), run(depth=more)
    first, second = shallow.step, deeper.step
    moments = [
        {name: _at_depth(value, deeper.moments[moment][name], share) for name, value in kinds.items()}
        for moment, kinds in shallow.moments.items()
        if moment in deeper.moments
    ]
    sizes = Sizes(
        *(_at_depth(size, astuple(second.sizes)[place], share) for place, size in enumerate(astuple(first.sizes)))
    )
    return DryStep(moments, _at_depth(first.flops, second.flops, share), first.layout, sizes)


def _at_depth(first: float, second: float, share: float) -> float:
    return first + (second - first) * share


# ---------------------------------------------------------------- building


def _build(config: Config, task: Task, *, depth: int | None = None) -> nn.Module:
    """The model as training builds it, on the meta device; the base not quantised."""
    fewer = {} if depth is None else shallow(_model_config(config, task).to_dict(), depth)
    return empty_model(config, task, overrides=fewer)


def _model_config(config: Config, task: Task) -> PreTrainedConfig:
    return load_model_config(config.model, settings=task.model_settings())


def _depth(config: Config, task: Task) -> int | None:
    """Blocks of the model; None where its config has no one number of them."""
    known = _model_config(config, task).to_dict()
    fields = depth_fields(known)
    own_decoder = [name for name in DECODER_DEPTHS if isinstance(known.get(name), int)]
    if not fields or len(fields) <= len(own_decoder) - (len(own_decoder) > 1):
        return None
    return known[fields[0]]


def _period(config: Config, task: Task) -> int:
    """After how many blocks their kinds (sliding or full attention) repeat."""
    kinds = _model_config(config, task).to_dict().get("layer_types")
    if not kinds:
        return 1
    return next(
        size for size in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % size] for i in range(len(kinds)))
    )


def _equal_blocks(config: Config) -> bool:
    trainable, adapter = config.trainable, config.adapter.model_extra or {}
    return not (trainable.patterns or trainable.freeze_patterns or any(adapter.get(name) for name in BY_BLOCK))


def _sizes(model: nn.Module) -> Sizes:
    """What bitsandbytes quantises are all frozen linear layers but the output head."""
    head = transformers_model(model).get_output_embeddings()
    layers = (layer for layer in model.modules() if type(layer) is nn.Linear and layer is not head)
    weights = list(model.parameters())  # a tied weight once
    trained = [weight for weight in weights if weight.requires_grad]
    matrices = [layer.weight.numel() for layer in layers if not layer.weight.requires_grad]
    return Sizes(
        elements=sum(weight.numel() for weight in weights),
        bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        trained=sum(weight.numel() for weight in trained),
        trained_bytes=sum(weight.numel() * weight.element_size() for weight in trained),
        matrices=sum(matrices),
        num_matrices=len(matrices),
        largest_trained=max((weight.numel() for weight in trained), default=0),
        largest_matrix=max(matrices, default=0),
        largest=max(weight.numel() for weight in weights),
        persistent=sum(weight.numel() for weight in weights if weight.numel() <= PERSISTENT),
    )


def _to_fake(model: nn.Module, mode: FakeTensorMode) -> None:
    """Weights and buffers on the meta device become fake ones on the CPU; tied ones stay tied.

    Frozen weights become buffers, for MemTracker hooks every parameter and only those that train can be hooked.
    """
    made: dict[int, torch.Tensor] = {}
    kept: list[torch.Tensor] = []  # alive to the end, so that no id comes twice

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            with mode:
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            made[id(tensor)] = nn.Parameter(new) if tensor.requires_grad else new
            kept.append(tensor)
        return made[id(tensor)]

    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else fake(buffer)
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                del module._parameters[name]
                held = module._parameters if weight.requires_grad else module._buffers
                held[name] = fake(weight)  # type: ignore[assignment]


# ---------------------------------------------------------------- running


@dataclass(frozen=True)
class _Run:
    moments: dict[str, Moment]
    """By name, so that two depths can be compared."""
    step: DryStep


def _run(
    config: Config,
    task: Method,
    batch: Any,
    *,
    probe: Probe | None,
    kind: str,
    accumulates: bool,
    sharded: bool,
    depth: int | None,
) -> _Run:
    model, mode = _build(config, task, depth=depth), FakeTensorMode(allow_non_fake_inputs=True)
    frozen = {companion: _empty(companion, weights_dtype(config)) for companion in frozen_models(task)}
    sizes = replace(_sizes(model), companions=sum(_bytes(frozen[companion]) for companion in task.companions()))
    for each in (model, *frozen.values()):
        _to_fake(each, mode)
    layout: Layout = "padded"
    if probe is not None:
        taken = {_layout_of(companion, frozen[companion], config.batch.layout) for companion in task.companions()}
        layout = choose_layout(
            model,
            wanted="padded" if "padded" in taken or "flat" not in task.layouts else config.batch.layout,
            attention=config.model.attention,
            pooled=task.pools,
            encoder_decoder=bool(transformers_model(model).config.is_encoder_decoder),
            probed=probe.twin,
        )
        treat_head_like(model, None if sharded else probe.twin)
    masks = None
    if probe is not None:
        about: dict[str, Any] = {"wanted": config.train.dropout, "layout": layout, "device": kind}
        with quiet():  # a run tells it
            masks = choose_dropout(model, config, task, probed=lambda: probe.twin, **about)
    if masks is not None and config.train.activation_checkpointing:
        enable_checkpointing(model, masks=masks)
    module = TaskModule(model, task, masks=masks)
    set_training_mode(module)
    with standing_in(task, frozen.__getitem__) as columns:
        micro_batch = batch(layout)
        if masks is not None:  # what is made of rows without memory takes none either
            micro_batch = replace(micro_batch, rows=mode.from_tensor(micro_batch.rows))
        if task.computed():
            micro_batch.extra = columns(micro_batch, batch("padded"))
        moments, flops = _watched(module, task, micro_batch, config, kind=kind, accumulates=accumulates, depth=depth)
    return _Run(moments, DryStep(list(moments.values()), flops, layout, sizes))


def _layout_of(companion: Companion, model: nn.Module, wanted: Literal["auto", "flat", "padded"]) -> Layout:
    """Of batches that a companion takes; its empty model is prepared for flat ones."""
    return choose_layout(
        model,
        wanted=wanted,
        attention=companion.model.attention,
        pooled=companion.pools,
        encoder_decoder=bool(transformers_model(model).config.is_encoder_decoder),
        probed=_twin_of(companion),
    )


def _bytes(model: nn.Module) -> int:
    """Of its weights and buffers."""
    return sum(value.numel() * value.element_size() for value in (*model.parameters(), *model.buffers()))


def _watched(
    module: TaskModule, task: Task, batch: Batch, config: Config, *, kind: str, accumulates: bool, depth: int | None
) -> tuple[dict[str, Moment], float]:
    """The moments of a step by their names, and its operations."""
    tracker = MemTracker()
    # it walks this at every operation, and torch's own kind of dictionary makes that 40% of a plan's time
    tracker.memory_tracking = WeakKeyDictionary()  # type: ignore[assignment]
    tracker.track_external(module)
    autocast = torch.autocast("cpu", dtype=torch.float16, enabled=config.train.precision == "fp16")
    moments: dict[str, Moment] = {}
    with pretending(kind):
        with tracker:
            for _ in range(2 if accumulates else 1):
                tracker.reset_mod_stats()
                with _Logits(_vocabulary(module.model)) as logits:
                    with autocast:
                        loss = total_of(module(batch=batch), task.terms)
                    loss.backward()
                found = _moments(tracker, blocks=depth, logits=logits.peak)
                moments |= {f"{name} again" if name in moments else name: kinds for name, kinds in found.items()}
        # on its own, for it keeps recomputed activations alive until Python collects its cycles; and second, for it
        # counts attention twice when its kernel is called for the first time
        with FlopCounterMode(display=False, custom_mapping=MORE_FLOPS) as counter, autocast:
            if task.acts_before_step:  # runs the model on each micro-batch, too
                with torch.no_grad():
                    module(batch=batch)
            total_of(module(batch=batch), task.terms).backward()
    return moments, float(counter.get_total_flops())


def _moments(tracker: MemTracker, *, blocks: int | None, logits: int) -> dict[str, Moment]:
    """The fullest moments. A whole run needs that of each pass; two depths are compared module by module."""
    found: dict[str, Moment] = {}
    for stats in tracker.memory_tracking.values():
        name = _same_at_any_depth(stats.mod_fqn, blocks)
        if name is None:
            continue
        for state in (_ModState.PEAK_FW, _ModState.PEAK_BW):
            for number, snapshot in enumerate(stats.snapshots.get(state, ())):
                top = "." not in stats.mod_fqn and state is _ModState.PEAK_FW
                found[f"{name} {state.value} {number}"] = _kinds(snapshot, logits=logits if top else 0)
    found["end"] = _kinds(tracker.get_tracker_snapshot(), logits=0)
    if blocks is None:
        found["peak"] = _kinds(tracker.get_tracker_snapshot("peak"), logits=0)
    return found


def _same_at_any_depth(name: str, blocks: int | None) -> str | None:
    """The module's name with its block called first or last; None for blocks between."""
    if blocks is None:
        return name
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit() and place and parts[place - 1] in ("layers", "layer", "h", "block", "blocks"):
            if int(part) not in (0, blocks - 1):
                return None
            parts[place] = "first" if int(part) == 0 else "last"
    return ".".join(parts)


def _kinds(snapshot: dict[torch.device, dict[Any, int]], *, logits: int) -> Moment:
    kinds: dict[Any, int] = {}
    for of_device in snapshot.values():
        for kind, size in of_device.items():
            kinds[kind] = kinds.get(kind, 0) + size
    other = sum(kinds.get(kind, 0) for kind in (_MemRefType.ACT, _MemRefType.TEMP, _MemRefType.OTH))
    logits = min(logits, other)
    return {
        "weights": float(kinds.get(_MemRefType.PARAM, 0) + kinds.get(_MemRefType.BUFFER, 0)),
        "gradients": float(kinds.get(_MemRefType.GRAD, 0)),
        "activations": float(other - logits),
        "logits": float(logits),
    }


def _vocabulary(model: nn.Module) -> int:
    head = transformers_model(model).get_output_embeddings()
    sizes = [part.out_features for part in head.modules() if isinstance(part, nn.Linear)] if head is not None else []
    return max(sizes, default=0)


class _Logits(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes of (rows, vocabulary) that are alive together."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.alive = 0
        self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if (
                isinstance(tensor, torch.Tensor)
                and self.vocabulary
                and tensor.ndim >= 2
                and tensor.shape[-1] == self.vocabulary
                and tensor.is_floating_point()
            ):
                self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        import weakref

        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.alive -= size


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _product_flops(total: Any, left: Any, right: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return addmm_flop(total, left, right) if len(left) == 2 else baddbmm_flop(total, left, right)


MORE_FLOPS = {  # torch counts attention by its GPU kernels alone, and no products that are added in place
    torch.ops.aten.addmm_: _product_flops,
    torch.ops.aten.baddbmm_: _product_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
