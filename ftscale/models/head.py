"""The new head of a classification model: where it is, and an MLP in its place."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from ftscale.base.errors import UserError, unknown_name
from ftscale.base.logs import log
from ftscale.config.schema import HeadConfig
from ftscale.models import mlp_head
from ftscale.models.initialize import seeded_weights

CODE_FILE = "modeling_mlp_head.py"


def head_module_names(model: PreTrainedModel) -> list[str]:
    """Modules with weights that stand outside the base model, e.g. ["classifier"]; else the output embedding."""
    base = model.base_model
    outside = [
        name for name, child in model.named_children() if child is not base and any(True for _ in child.parameters())
    ]
    if base is not model:
        return outside
    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if output is not None and module is output]


def replace_head(model: PreTrainedModel, config: HeadConfig, *, seed: int) -> PreTrainedModel:
    """Put an MLP where the model's last linear layer with `num_labels` outputs is; nothing for empty `hidden_sizes`.

    What it takes to build it again goes into `model.config.mlp_head`. Raises UserError for an unknown activation and
    for a model without such a layer.
    """
    if not config.hidden_sizes:
        return model
    if config.activation not in ACT2FN:
        raise UserError(unknown_name("head.activation", config.activation, ACT2FN))
    if "mlp_head" in model.config.to_dict():
        raise UserError(
            f"head.hidden_sizes = {list(config.hidden_sizes)} asks for an MLP head, and the model has one already; set "
            "head.hidden_sizes: [] to train it further."
        )
    if not type(model).__module__.startswith("transformers.models."):
        raise UserError(
            f"head.hidden_sizes = {list(config.hidden_sizes)} needs a model class of transformers, and "
            f"{type(model).__name__} comes with code of its own; set head.hidden_sizes: []."
        )
    model.config.mlp_head = {
        "module": _classifier_name(model),
        "base_class": type(model).__name__,
        "hidden_sizes": list(config.hidden_sizes),
        "activation": config.activation,
        "dropout": config.dropout,
    }
    with seeded_weights(seed, "head"):
        mlp_head.put_head(model, model.config.mlp_head)
    widths = [model.get_submodule(model.config.mlp_head["module"]).in_features, *config.hidden_sizes]
    log.info("head: %s, %s", " -> ".join(map(str, [*widths, model.config.num_labels])), config.activation)
    return model


def model_class_with_head(model_config: transformers.PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that builds a saved model whose config has `mlp_head`, without running code from the folder."""
    return mlp_head.with_mlp_head(getattr(transformers, model_config.mlp_head["base_class"]))


def write_head_code(model_config: transformers.PreTrainedConfig, folder: str | Path, *, auto_class: str) -> None:
    """Put the head's code beside a saved config.json and name it there, so that transformers alone can load it."""
    base = model_config.mlp_head["base_class"]
    lines = [
        Path(mlp_head.__file__).read_text(encoding="utf-8"),
        "",
        f"from transformers import {base} as _Base  # noqa: E402",
        "",
        f"{base} = with_mlp_head(_Base)",
        "",
    ]
    folder = Path(folder)
    (folder / CODE_FILE).write_text("\n".join(lines), encoding="utf-8")
    path = folder / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["auto_map"] = {auto_class: f"{Path(CODE_FILE).stem}.{base}"}
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def auto_class_of(model_class: str) -> str:
    """The Auto class that loads a transformers model class, e.g. BertForSequenceClassification's."""
    tail = model_class[model_class.rindex("For") :]
    return f"AutoModel{tail}"


def _classifier_name(model: PreTrainedModel) -> str:
    heads = head_module_names(model)
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == model.config.num_labels
        and name.split(".")[0] in heads
    ]
    if not linears:
        raise UserError(
            f"head.hidden_sizes needs a linear classifier with {model.config.num_labels} outputs, and "
            f"{type(model).__name__} has none; set head.hidden_sizes: []."
        )
    return linears[-1]
