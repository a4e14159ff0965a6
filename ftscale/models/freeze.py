"""Which base weights train when there is no adapter, and eval mode for the parts that do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from ftscale.base.errors import UserError, unknown_name
from ftscale.config.schema import TrainableConfig
from ftscale.models.head import head_module_names


def freeze(model: PreTrainedModel, config: TrainableConfig, *, unused: Sequence[str] = ()) -> None:
    """Set `requires_grad` of every weight: by scope, then embeddings, `patterns` and last `freeze_patterns`.

    `unused`: parts of the model that no loss comes from. Their weights have no gradient, which is 0 under ZeRO: there
    alone weight decay would change them.
    Raises UserError where a pattern matches no weight, there are fewer blocks than asked, or nothing would train.
    """
    weights = dict(model.named_parameters())
    problems = _pattern_problems(config, weights)
    if problems:
        raise UserError(*problems)
    trained = _scope(model, config, weights)
    if config.freeze_embeddings:
        embeddings = {id(weight) for weight in model.get_input_embeddings().parameters()}
        trained -= {name for name, weight in weights.items() if id(weight) in embeddings}
    trained -= {name for name in weights if is_in(name, unused)}
    trained |= _matching(config.patterns, weights)
    trained -= _matching(config.freeze_patterns, weights)
    if not trained:
        raise UserError(
            f"trainable = {config.model_dump(exclude_defaults=True)} leaves no weight of {type(model).__name__} to "
            "train; widen trainable.scope or trainable.patterns."
        )
    for name, weight in weights.items():
        weight.requires_grad_(name in trained)


def is_in(weight: str, parts: Iterable[str]) -> bool:
    """Whether a weight, by its name, is in one of these parts of the model, or of its body."""
    return any(f".{part}." in f".{weight}" for part in parts)


def set_training_mode(model: nn.Module) -> None:
    """`model.train()`, but eval mode for each part whose weights are all frozen.

    So the running statistics of a frozen batch norm stay, and there is no dropout in what does not learn. A module
    without weights (dropout, activation) goes with the part that it stands in. Call it in place of `model.train()`.
    """
    model.train()
    _frozen_to_eval(model)


def find_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks: the longest list of modules of one class, the last of several (a decoder's)."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    uniform = [blocks for blocks in lists if len({type(block) for block in blocks}) == 1]
    if not uniform:
        raise UserError(
            f"trainable.scope = last_blocks needs a list of blocks, and {type(model).__name__} has none; use "
            "trainable.patterns."
        )
    longest = max(map(len, uniform))
    return [blocks for blocks in uniform if len(blocks) == longest][-1]


def _scope(model: PreTrainedModel, config: TrainableConfig, weights: dict[str, nn.Parameter]) -> set[str]:
    if config.scope == "all":
        return set(weights)
    heads = [model.get_submodule(name) for name in head_module_names(model)]
    parts: list[nn.Module] = heads
    if config.scope == "last_blocks":
        blocks = find_blocks(model)
        if not 0 < config.last_blocks <= len(blocks):
            raise UserError(
                f"trainable.last_blocks = {config.last_blocks} must be from 1 to {len(blocks)}, the number of blocks "
                f"of {type(model).__name__}."
            )
        parts = [*heads, *list(blocks)[-config.last_blocks :]]
    chosen = {id(weight) for part in parts for weight in part.parameters()}
    return {name for name, weight in weights.items() if id(weight) in chosen}


def _pattern_problems(config: TrainableConfig, weights: dict[str, nn.Parameter]) -> list[str]:
    problems = []
    for setting, patterns in (("patterns", config.patterns), ("freeze_patterns", config.freeze_patterns)):
        for pattern in patterns:
            try:
                if not _matching([pattern], weights):
                    sentence = unknown_name(f"trainable.{setting}", pattern, weights)
                    problems.append(sentence.replace("is not known", "matches no weight"))
            except re.error as error:
                problems.append(f"trainable.{setting} = {pattern!r} is not a regular expression: {error}.")
    return problems


def _matching(patterns: Iterable[str], weights: dict[str, nn.Parameter]) -> set[str]:
    return {name for name in weights if any(re.search(pattern, name) for pattern in patterns)}


def _frozen_to_eval(module: nn.Module) -> None:
    for child in module.children():
        if any(weight.requires_grad for weight in child.parameters()):
            _frozen_to_eval(child)
        elif _has_state(child):
            child.eval()


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())
