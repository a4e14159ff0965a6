"""Optimizers by name: a table of constructors, and the settings that each takes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ftscale.base.errors import UserError, unknown_name
from ftscale.config.schema import OptimizerConfig
from ftscale.optim.groups import parameter_groups
from ftscale.optim.master_weights import MasterWeights


@dataclass(frozen=True)
class Entry:
    """A constructor, imported when it is used."""

    module: str
    name: str
    settings: tuple[str, ...]
    """Those of `betas`, `eps` and `momentum` that it takes."""
    num_betas: int = 2
    fixed: dict[str, Any] = field(default_factory=dict)
    """Arguments that ftscale sets."""


def _bitsandbytes() -> dict[str, Entry]:
    families = {
        "adamw": ("AdamW", ("betas", "eps"), 2),
        "adam": ("Adam", ("betas", "eps"), 2),
        "lion": ("Lion", ("betas",), 2),
        "ademamix": ("AdEMAMix", ("betas", "eps"), 3),
    }
    entries = {"sgd_8bit": Entry("bitsandbytes.optim", "SGD8bit", ("momentum",))}
    for name, (class_name, settings, num_betas) in families.items():
        for ours, theirs in (
            (f"{name}_8bit", f"{class_name}8bit"),
            (f"paged_{name}", f"Paged{class_name}"),
            (f"paged_{name}_8bit", f"Paged{class_name}8bit"),
        ):
            entries[ours] = Entry("bitsandbytes.optim", theirs, settings, num_betas)
    return entries


# one kernel for all of an update; on a CPU torch's default takes 79 ms for the 22.7 M weights of MiniLM, this 12 ms
FUSED = {"fused": True}

OPTIMIZERS: dict[str, Entry] = {
    "adamw": Entry("torch.optim", "AdamW", ("betas", "eps"), fixed=FUSED),
    "adam": Entry("torch.optim", "Adam", ("betas", "eps"), fixed=FUSED),
    "sgd": Entry("torch.optim", "SGD", ("momentum",)),
    # with these three off, lr means what it means everywhere else (transformers' page on Adafactor, fine-tuning T5)
    "adafactor": Entry(
        "transformers",
        "Adafactor",
        (),
        fixed={"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "lion": Entry("bitsandbytes.optim", "Lion", ("betas",)),
    "ademamix": Entry("bitsandbytes.optim", "AdEMAMix", ("betas", "eps"), num_betas=3),
    **_bitsandbytes(),
}

OTHER_NAMES = {  # what transformers' TrainingArguments.optim calls ours
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_torch_xla": "adamw",
    "adamw_torch_npu_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_torch_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "lion_32bit": "lion",
    "paged_adamw_32bit": "paged_adamw",
    "paged_ademamix_32bit": "paged_ademamix",
    "paged_lion_32bit": "paged_lion",
}

PROBED_WEIGHTS = 2**16  # enough for states in blocks of 4,096 elements; tables of a state weigh little among so many

CPU_ADAM = {"adamw": True, "adam": False}  # DeepSpeedCPUAdam's adamw_mode


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, head_names: Sequence[str] = (), master_weights: bool = False
) -> Optimizer:
    """The optimizer of the model's trained weights; weight decay off biases and norms, heads at `head_lr`.

    `head_names`: names of new heads. `master_weights`: step float32 copies of 16-bit weights (see MasterWeights).
    Raises UserError for an unknown name and for a setting that the optimizer does not take.
    """
    check_optimizer(config)
    groups = _groups(model, config, head_names)
    build = partial(_construct, config=config)
    return MasterWeights(groups, build) if master_weights else build(groups)


def build_cpu_adam(model: nn.Module, config: OptimizerConfig, *, head_names: Sequence[str] = ()) -> Optimizer:
    """DeepSpeed's Adam on the CPU, for an optimizer that is offloaded; compiled with g++ at first use, about 40 s."""
    check_optimizer(config)
    if config.name not in CPU_ADAM:
        raise UserError(
            f"optimizer.name = {config.name} cannot be offloaded: DeepSpeed has adam and adamw on the CPU; use one of "
            "these, or a strategy without offload."
        )
    try:
        from deepspeed.ops.adam import DeepSpeedCPUAdam
    except ImportError as error:
        raise UserError("an offloaded optimizer needs deepspeed; pip install deepspeed") from error
    return DeepSpeedCPUAdam(
        _groups(model, config, head_names), lr=config.lr, adamw_mode=CPU_ADAM[config.name], **_options(config)
    )


def state_bytes_per_weight(config: OptimizerConfig) -> float:
    """Bytes of optimizer state for each trained weight, as one step of a small weight shows."""
    weight = torch.nn.Parameter(torch.zeros(PROBED_WEIGHTS // 64, 64))
    weight.grad = torch.ones_like(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # paged optimizers tell that they are not paged on a CPU
        optimizer = _construct([{"params": [weight]}], config=config)
        optimizer.step()
    tensors = (value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
    return sum(tensor.nbytes for tensor in tensors) / PROBED_WEIGHTS


def check_optimizer(config: OptimizerConfig) -> None:
    """Raise UserError for an unknown name and for settings that this optimizer would ignore; imports no optimizer."""
    if config.name not in OPTIMIZERS:
        raise UserError(_unknown_optimizer(config.name))
    entry = OPTIMIZERS[config.name]
    problems = []
    for name in ("betas", "eps", "momentum"):
        value = getattr(config, name)
        if name not in entry.settings and value != OptimizerConfig.model_fields[name].default:
            takers = [other for other, its in OPTIMIZERS.items() if name in its.settings]
            problems.append(
                f"optimizer.{name} = {value} is not a setting of {config.name}; leave it out (it is one of "
                f"{', '.join(takers)})."
            )
    if "betas" in entry.settings and config.betas is not None and len(config.betas) != entry.num_betas:
        problems.append(
            f"optimizer.betas = {list(config.betas)} must have {entry.num_betas} numbers for {config.name}."
        )
    if config.name == "sgd_8bit" and config.momentum == 0:
        problems.append(
            "optimizer.momentum = 0 must be positive for sgd_8bit, whose 8-bit state is the momentum; use sgd instead."
        )
    if problems:
        raise UserError(*problems)


def _unknown_optimizer(name: str) -> str:
    from transformers.training_args import OptimizerNames

    if ours := OTHER_NAMES.get(name.lower()):
        return f"optimizer.name = {name!r} is transformers' name; set optimizer.name: {ours}."
    if name.lower() in {kind.value for kind in OptimizerNames} - set(OPTIMIZERS):
        return f"optimizer.name = {name!r} is not among ftscale's optimizers; known: {', '.join(sorted(OPTIMIZERS))}."
    return unknown_name("optimizer.name", name, OPTIMIZERS)


def _groups(model: nn.Module, config: OptimizerConfig, head_names: Sequence[str]) -> list[dict[str, Any]]:
    return parameter_groups(
        model, lr=config.lr, head_lr=config.head_lr, weight_decay=config.weight_decay, head_names=head_names
    )


def _construct(groups: list[dict[str, Any]], *, config: OptimizerConfig) -> Optimizer:
    entry = OPTIMIZERS[config.name]
    try:
        constructor = getattr(import_module(entry.module), entry.name)
    except ImportError as error:
        package = entry.module.split(".")[0]
        raise UserError(f"optimizer.name = {config.name} needs {package}; pip install {package}") from error
    return constructor(groups, lr=config.lr, **_options(config), **entry.fixed)


def _options(config: OptimizerConfig) -> dict[str, Any]:
    settings = {name: getattr(config, name) for name in OPTIMIZERS[config.name].settings}
    return {name: value for name, value in settings.items() if value is not None}
