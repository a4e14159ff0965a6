"""PEFT adapters by name, the count of what trains, and activation checkpointing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn
from transformers import PreTrainedModel

from ftscale.base.errors import UserError, nearest, unknown_name
from ftscale.base.startup import unchanged_environment
from ftscale.config.schema import AdapterConfig
from ftscale.models.freeze import is_in
from ftscale.models.gradient_rule import GradientRule
from ftscale.models.initialize import seeded_weights
from ftscale.models.masks import Masks
from ftscale.models.sizes import size_problems, told_as_too_large

ADALORA_STATE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Of peft's RankAllocator: sensitivity of each weight, and the moving averages of it and of its uncertainty."""

MODULE_NAMES = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save")
"""Fields of peft's methods that name modules."""

ENDS_OF_NAMES = ("adaption_prompt",)
"""Methods whose target_modules, where it is a text, is the end of a name and no regular expression."""

OWN_FIELDS = frozenset({"task_type", "peft_type", "base_model_name_or_path", "inference_mode", "auto_mapping"})


def apply_adapter(
    model: PreTrainedModel,
    config: AdapterConfig,
    *,
    task_type: str | None,
    new_modules: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    revision: str | None = None,
    unused: Sequence[str] = (),
) -> PreTrainedModel | PeftModel:
    """Wrap the model in the adapter that `config` names; `method: none` gives the model back.

    `task_type`: peft's (SEQ_CLS, TOKEN_CLS, CAUSAL_LM, SEQ_2_SEQ_LM), None for images. `new_modules`: names of new
    heads, which train whole and are saved with the adapter. `dtype`: of the trained weights; None = peft's choice,
    float32 for a base in 16 bits. `num_steps`: optimizer steps of the run, for methods that plan over them
    (adalora). `revision`: of the base on the hub, as the saved adapter must name it. `unused`: parts of the model that
    no loss comes from, see `freeze`. Where peft knows no target modules for the model, all linear layers are adapted.
    """
    if config.method == "none":
        return model
    peft_config = build_peft_config(config, task_type=task_type, num_steps=num_steps)
    if problems := module_problems(model, config):
        raise UserError(*problems)
    peft_config.revision = revision
    names = {field.name for field in fields(peft_config)}
    if (
        "target_modules" in names
        and peft_config.target_modules is None
        and not _has_default_targets(peft_config, model)
    ):
        peft_config.target_modules = "all-linear"
    if "modules_to_save" in names and new_modules:
        peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or ()), *new_modules})
    too_large = told_as_too_large(f"adapter = {{method: {config.method}, ...}}")
    try:
        with seeded_weights(seed, "adapter"), unchanged_environment(), too_large:
            wrapped = get_peft_model(model, peft_config, autocast_adapter_dtype=dtype is None)
    except (ValueError, TypeError, AttributeError, NotImplementedError, KeyError) as error:
        names_it_has = f" Its modules: {', '.join(_module_names(model))}." if "arget modules" in str(error) else ""
        raise UserError(
            f"adapter.method = {config.method} does not go with {type(model).__name__}: {error}{names_it_has}"
        ) from error
    for name, weight in wrapped.get_base_model().named_parameters():
        if is_in(name, unused):
            weight.requires_grad_(False)
    _check_new_modules_train(wrapped, config, new_modules)
    if dtype is not None:
        _cast_trained(wrapped, dtype)
    return wrapped


def module_problems(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Names of modules, and patterns of them, that the model does not have, in the section's lists of modules.

    peft passes over a name in a list of which another one is there. The model may be one without weights.
    """
    names = [name for name, _ in model.named_modules() if name]
    known = _module_names(model)
    problems = []
    for setting in MODULE_NAMES:
        asked = (config.model_extra or {}).get(setting)
        if isinstance(asked, str):
            if setting == "target_modules" and config.method not in ENDS_OF_NAMES and not _matches(asked, names):
                problems.append(
                    f"adapter.{setting} = {asked!r} matches no module of {type(model).__name__} (it is a regular "
                    f"expression of the whole name, such as {names[-1]}); the last parts of the names are: "
                    f"{', '.join(known)}."
                )
            continue
        for name in asked or ():
            if not any(found == name or found.endswith(f".{name}") for found in names):
                close = nearest(str(name), known)
                fix = f"did you mean {close!r}? The" if close else "the"
                problems.append(
                    f"adapter.{setting} = {name!r} is not a module of {type(model).__name__}; {fix} names are: "
                    f"{', '.join(known)}."
                )
    return problems


def _matches(pattern: str, names: Sequence[str]) -> bool:
    if pattern.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return True
    try:
        return any(re.fullmatch(pattern, name) for name in names)
    except re.error:
        return True  # peft says what is wrong with it


def build_peft_config(config: AdapterConfig, *, task_type: str | None, num_steps: int | None = None) -> PeftConfig:
    """Build peft's config of the method from the section's other keys; needs no model, so it checks early."""
    method = next((kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value.lower() == config.method), None)
    if method is None:
        methods = [kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
        raise UserError(unknown_name("adapter.method", config.method, ["none", *methods]))
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    if task_type is None and issubclass(config_class, PromptLearningConfig):
        raise UserError(
            f"adapter.method = {config.method} learns a prompt, and peft has no prompts for models of this task; take "
            "another method, such as lora."
        )
    known = {field.name for field in fields(config_class)} - OWN_FIELDS
    options: dict[str, Any] = dict(config.model_extra or {})
    unknown = [unknown_name(f"adapter ({config.method})", name, known) for name in options if name not in known]
    if problems := [*unknown, *size_problems(options, setting="adapter")]:
        raise UserError(*problems)
    if "total_step" in known and num_steps is not None:
        options.setdefault("total_step", num_steps)
    try:
        return config_class(task_type=task_type, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"adapter = {{method: {config.method}, ...}} is refused by peft: {error}") from error


class AdaLora(GradientRule):
    """Moves ranks between layers by the importance of each weight (arXiv:2303.10512)."""

    def __init__(self, model: PeftModel) -> None:
        self.model = model

    def after_update(self, *, step: int) -> None:
        """Learn from this step's gradients, and cut the ranks as the method's schedule says."""
        self.model.base_model.update_and_allocate(step)

    def state_dict(self) -> dict[str, Any]:
        """The importance of each weight, and the ranks as they are cut."""
        allocator = self.model.base_model.rankallocator
        state = {name: getattr(allocator, name) for name in ADALORA_STATE}
        return {**state, "rank_pattern": self.model.active_peft_config.rank_pattern}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Bring back what `state_dict` gave; None = a checkpoint holds nothing of it."""
        if state is None:
            return
        self.model.active_peft_config.rank_pattern = state["rank_pattern"]
        for kind in ADALORA_STATE:
            kept = {name: value.to(self.model.device) for name, value in state[kind].items()}
            setattr(self.model.base_model.rankallocator, kind, kept)


def gradient_rule(model: nn.Module) -> GradientRule:
    """What the model's adapter, if it has one, does between backward and update."""
    if isinstance(model, PeftModel) and model.active_peft_config.peft_type == PeftType.ADALORA:
        return AdaLora(model)
    return GradientRule()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Weights that train, and all weights, with those of a 4-bit base counted one by one."""
    if isinstance(model, PeftModel):
        return model.get_nb_trainable_parameters()
    # ZeRO-3 keeps a piece of each weight, its true size in ds_numel
    sizes = [
        (weight.ds_numel if hasattr(weight, "ds_numel") else weight.numel(), weight.requires_grad)
        for weight in model.parameters()
    ]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def weight_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the weights that train, and of all weights and buffers."""
    sizes = [
        ((weight.ds_numel if hasattr(weight, "ds_numel") else weight.numel()) * weight.element_size(), trained)
        for weight in model.parameters()
        for trained in (weight.requires_grad,)
    ]
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    return sum(size for size, trained in sizes if trained) + buffers, sum(size for size, _ in sizes) + buffers


def enable_checkpointing(model: PreTrainedModel | PeftModel, *, masks: Masks | None = None) -> None:
    """Recompute each block's activations in the backward pass. `masks`: what its dropouts draw from, None = torch.

    Not in the reentrant mode: that one needs inputs with a gradient, which a frozen embedding does not give, and
    breaks DDP where a weight is used twice (torch.utils.checkpoint's documentation).
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not base.supports_gradient_checkpointing:
        raise UserError(
            f"train.activation_checkpointing = true is not supported by {type(base).__name__}; set it to false."
        )
    replayed = {} if masks is None else {"context_fn": masks.replayed}
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **replayed})


def _module_names(model: nn.Module) -> list[str]:
    """What the modules that have weights are called, without where they stand."""
    leaves = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    return sorted({name.rpartition(".")[2] for name in leaves})


def _has_default_targets(peft_config: PeftConfig, model: PreTrainedModel) -> bool:
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[peft_config.peft_type]
    # ia3 and others that need more than target modules have no such table: peft itself says what is missing
    return not hasattr(tuner, "target_module_mapping") or model.config.model_type in tuner.target_module_mapping


def _check_new_modules_train(model: PeftModel, config: AdapterConfig, new_modules: Sequence[str]) -> None:
    trained = [f".{name}." for name, weight in model.named_parameters() if weight.requires_grad]
    idle = [module for module in new_modules if not any(f".{module}." in name for name in trained)]
    if idle:
        raise UserError(
            f"adapter.method = {config.method} leaves the new head {', '.join(idle)} untrained; choose a method that "
            "has modules_to_save, such as lora."
        )


def _cast_trained(model: nn.Module, dtype: torch.dtype) -> None:
    for weight in model.parameters():
        if weight.requires_grad and weight.is_floating_point():
            weight.data = weight.data.to(dtype)
