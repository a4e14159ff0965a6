"""Which weights decay, and which learn at the head's rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ftscale.base.errors import UserError


def parameter_groups(
    model: nn.Module, *, lr: float, head_lr: float | None, weight_decay: float, head_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Trained weights in up to four groups (`name`: body, body_no_decay, head, head_no_decay), empty ones left out.

    Biases, vectors and the weights of norms do not decay. `head_names`: names of new heads, e.g. ["classifier"]; they
    learn at `head_lr` where it is set. Raises UserError for a `head_lr` without a head that trains.
    """
    norm_weights = _norm_weights(model)
    members: dict[str, list[nn.Parameter]] = {"body": [], "body_no_decay": [], "head": [], "head_no_decay": []}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        part = "head" if head_lr is not None and _in_head(name, head_names) else "body"
        decays = id(weight) not in norm_weights and _num_dimensions(weight) > 1 and not name.endswith("bias")
        members[part if decays else f"{part}_no_decay"].append(weight)
    if head_lr is not None and not (members["head"] or members["head_no_decay"]):
        raise UserError(f"optimizer.head_lr = {head_lr} needs a head that trains, and there is none; leave it out.")
    return [
        {
            "name": name,
            "params": weights,
            "lr": head_lr if name.startswith("head") else lr,
            "weight_decay": 0.0 if name.endswith("no_decay") else weight_decay,
        }
        for name, weights in members.items()
        if weights
    ]


def _norm_weights(model: nn.Module) -> set[int]:
    """LayerNorm, RMSNorm and their kin go by many classes, all with "norm" in the name."""
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    return {id(weight) for module in norms for weight in module.parameters(recurse=False)}


def _in_head(name: str, head_names: Sequence[str]) -> bool:
    # an adapter puts its own names around: base_model.model.classifier.modules_to_save.default.weight
    return any(f".{head}." in f".{name}" for head in head_names)


def _num_dimensions(weight: nn.Parameter) -> int:
    # ZeRO-3 keeps each weight as a flat piece, its true shape in ds_shape
    return len(weight.ds_shape) if hasattr(weight, "ds_shape") else weight.ndim
