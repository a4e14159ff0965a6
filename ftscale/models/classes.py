"""The classes of a pretrained head, by their names: whether its rows are those of the task, and in which order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ftscale.base.logs import log
from ftscale.models.head import head_module_names
from ftscale.models.initialize import seeded_weights

CLASSIFIER = re.compile(r"For\w*(Classification|MultipleChoice|SentencePrediction)")
PLACEHOLDER = re.compile(r"LABEL_\d+")  # what transformers writes where nobody named the classes


@dataclass(frozen=True)
class Verdict:
    """What becomes of the head that a model brings along, where it has one of the right shape."""

    action: Literal["keep", "reorder", "replace"]
    said: str = ""
    """A sentence for whoever may have meant something else; empty = nothing unusual."""


def judge_head(model_config: PreTrainedConfig, settings: dict[str, Any], *, auto_class: str, keep: bool) -> Verdict:
    """`model_config`: the model's own; `settings`: what the task sets, with `id2label` or a regression's `num_labels`.

    `keep`: the head is wanted whatever its classes are called.
    """
    ours, theirs = tuple(map(str, settings.get("id2label", {}).values())), class_names(model_config)
    regression = settings.get("problem_type") == "regression"
    if not (ours or regression) or settings["num_labels"] != model_config.num_labels or not _has_head(model_config):
        return Verdict("keep")  # no classifier here or there, or one of another shape, which is new anyway
    other = _of_another_task(model_config, auto_class) or _of_another_problem(model_config, settings)
    if other is None and set(ours) == set(theirs):
        return Verdict("keep" if ours == theirs else "reorder")
    unnamed = all(PLACEHOLDER.fullmatch(name) for name in theirs)
    if other is None and not unnamed and not (regression and model_config.problem_type == "regression"):
        other = f"its classes are {_listed(theirs)}" + (f", not {_listed(ours)}" if ours else "")
    if other is not None and keep:
        return Verdict("keep", f"the model's head is kept (head.keep = true), although {other}")
    if other is not None:
        return Verdict("replace", f"the model's head is replaced by a new one: {other}; set head.keep: true to keep it")
    if ours and ours != tuple(map(str, range(len(ours)))):
        return Verdict(
            "keep",
            f"the classes of the model's head have no names: its rows are taken for {_listed(ours)} in this order; set "
            "task.labels to another order if they are others",
        )
    return Verdict("keep")


def class_names(model_config: PreTrainedConfig) -> tuple[str, ...]:
    """The names of a config's classes in the order of their ids; LABEL_0, LABEL_1, ... where nobody named them."""
    return tuple(str(name) for _, name in sorted(model_config.id2label.items()))


def labels_of_model(labels: Sequence[str], model_config: PreTrainedConfig, *, auto_class: str) -> tuple[str, ...]:
    """Labels that the rows told, in the order of the model's head where it has the same names."""
    theirs = class_names(model_config)
    same = set(theirs) == set(labels) and _has_head(model_config) and not _of_another_task(model_config, auto_class)
    return theirs if same else tuple(labels)


def apply_verdict(
    model: PreTrainedModel, verdict: Verdict, *, theirs: Sequence[str], ours: Sequence[str], seed: int
) -> None:
    """Put the rows of the loaded head in the task's order, or give it new weights."""
    if verdict.action == "reorder":
        _reorder(model, [theirs.index(name) for name in ours])
        log.info("the rows of the model's head follow their names: %s", _listed(ours))
    elif verdict.action == "replace":
        with seeded_weights(seed, "model"):
            _renew(model)
    if verdict.said:
        log.warning("%s", verdict.said)


@torch.no_grad()
def _reorder(model: PreTrainedModel, order: list[int]) -> None:
    for head in head_module_names(model):
        layers = [
            module
            for module in model.get_submodule(head).modules()
            if isinstance(module, nn.Linear) and module.weight.shape[0] == len(order)
        ]
        for layer in layers[-1:]:  # what comes before makes features, not classes, if there are just as many
            layer.weight.copy_(layer.weight[order])
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order])


def _renew(model: PreTrainedModel) -> None:
    """New weights as transformers gives them to a head that a checkpoint lacks."""
    for head in head_module_names(model):
        for module in model.get_submodule(head).modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.zeros_like(weight)))
        model.get_submodule(head).apply(model._init_weights)


def _has_head(model_config: PreTrainedConfig) -> bool:
    """Whether the model was saved with a classifier, as far as its config says."""
    made = model_config.architectures or []
    return not made or any(CLASSIFIER.search(name) for name in made)


def _of_another_task(model_config: PreTrainedConfig, auto_class: str) -> str | None:
    """BERT's heads for tokens and for texts have one name and shape."""
    made, tail = model_config.architectures or [], auto_class.removeprefix("AutoModel")
    return f"it comes from a {made[0]}" if made and not any(tail in name for name in made) else None


def _of_another_problem(model_config: PreTrainedConfig, settings: dict[str, Any]) -> str | None:
    was, now = model_config.problem_type, settings.get("problem_type")
    if "regression" not in (was, now) or was in (None, now):
        return None
    return f"it was trained for {was}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:6]))
    return f"{shown}, ..." if len(names) > 6 else shown
