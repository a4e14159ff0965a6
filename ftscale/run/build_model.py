"""The model that trains: loaded, then its head, adapter or frozen parts, then the layout of its batches."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from ftscale.base.logs import log
from ftscale.config import Config
from ftscale.config.schema import ModelConfig
from ftscale.distributed.runtime import Distributed
from ftscale.methods.base import Method
from ftscale.modalities.collate import Layout
from ftscale.models.freeze import freeze
from ftscale.models.head import head_module_names, replace_head
from ftscale.models.layout import choose_layout
from ftscale.models.load import load_model, load_small_twin
from ftscale.models.masks import Masks
from ftscale.run.dropout import Mode, choose_dropout
from ftscale.tasks.base import Task


@dataclass(frozen=True)
class Built:
    """The model that trains, and how it does."""

    model: Any
    head_names: list[str]
    """Modules that are its new head."""
    layout: Layout
    """Of its batches."""
    masks: Masks | None
    """What its dropouts draw from; None = each process draws in turn, as torch does."""


def build_model(
    config: Config, task: Method, distributed: Distributed, *, num_steps: int, dropout: Mode = "by_process"
) -> Built:
    """The model that trains, with its layout and dropout settled.

    `num_steps`: optimizer steps of the run, for adapters that plan over them; `dropout`: see `choose_dropout`.
    """
    from ftscale.models.adapt import enable_checkpointing

    model = _load(config, task, distributed)
    task.fit_model(model, seed=config.seed)
    if config.head.hidden_sizes:
        replace_head(model, config.head, seed=config.seed)
    head_names = head_module_names(model) if task.brings_head else []
    model = _choose_trained(model, config, task, head_names, num_steps=num_steps)
    if config.model.quantization == "none":
        model.to(distributed.device)
    layout = batch_layout(model, config, task, distributed)
    masks = None
    if dropout != "by_process":
        twin = partial(
            _small_twin, config.model, distributed, auto_class=task.auto_class, settings=task.model_settings()
        )
        masks = choose_dropout(
            model,
            config,
            task,
            wanted=dropout,
            layout=layout,
            device=distributed.device.type,
            probed=twin if distributed.strategy.shards_weights else None,
        )
    if config.train.activation_checkpointing:
        enable_checkpointing(model, masks=masks)
    _tell(model)
    return Built(model, head_names, layout, masks)


def batch_layout(model: Any, config: Config, task: Task, distributed: Distributed) -> Layout:
    """Flat or padded, as the configuration asks and the model allows; prepares the model for flat rows."""
    if not task.modality.in_tokens or ("flat" not in task.layouts and config.batch.layout == "auto"):
        return "padded"
    return model_layout(
        model,
        config.model,
        wanted=config.batch.layout,
        auto_class=task.auto_class,
        settings=task.model_settings(),
        pooled=task.pools,
        every_token="embeds" in config.method.needs,
        distributed=distributed,
    )


def model_layout(
    model: Any,
    source: ModelConfig,
    *,
    wanted: Literal["auto", "flat", "padded"],
    auto_class: str,
    settings: dict[str, Any],
    pooled: bool,
    every_token: bool = False,
    distributed: Distributed,
) -> Layout:
    """The layout of batches that a model takes, which is prepared for flat rows. `source`: what it was loaded from."""
    twin = None
    if distributed.strategy.shards_weights and wanted != "padded":
        twin = _small_twin(source, distributed, auto_class=auto_class, settings=settings)
    return choose_layout(
        model,
        wanted=wanted,
        attention=source.attention,
        pooled=pooled,
        encoder_decoder=bool(model.config.is_encoder_decoder),
        every_token=every_token,
        probed=twin,
    )


def _small_twin(source: ModelConfig, distributed: Distributed, *, auto_class: str, settings: dict[str, Any]) -> Any:
    """To be tried out in place of a model whose weights are sharded, which cannot be before training."""
    with distributed.whole_weights():
        return load_small_twin(source, auto_class=auto_class, settings=settings)


def _load(config: Config, task: Task, distributed: Distributed) -> Any:
    # random weights, as of a new head, must be the same under every strategy, and those made in shards draw other
    # numbers; nor can transformers (5.23, integrations/deepspeed.py) replace a head of another size in shards
    fresh = config.model.init == "random" or task.brings_head
    with distributed.whole_weights() if fresh else nullcontext():
        return load_model(
            config.model,
            auto_class=task.auto_class,
            settings=task.model_settings(),
            dtype=weights_dtype(config),
            seed=config.seed,
            keep_head=config.head.keep,
        )


def weights_dtype(config: Config) -> torch.dtype:
    """Of the weights that train; fp16 trains float32 weights under autocast."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def _choose_trained(model: Any, config: Config, task: Task, head_names: list[str], *, num_steps: int) -> Any:
    """The model in its adapter; or, where there is none, with the weights frozen that do not train."""
    from ftscale.models.adapt import apply_adapter

    if config.adapter.method == "none":
        freeze(model, config.trainable, unused=task.unused)
        return model
    return apply_adapter(
        model,
        config.adapter,
        task_type=task.peft_type,
        new_modules=head_names,
        dtype=weights_dtype(config),
        num_steps=num_steps,
        seed=config.seed,
        revision=config.model.revision,
        unused=task.unused,
    )


def _tell(model: Any) -> None:
    from ftscale.models.adapt import count_parameters

    trained, total = count_parameters(model)
    log.info(
        "%s: %s of %s parameters train (%.2f %%)",
        type(model).__name__,
        f"{trained:,}",
        f"{total:,}",
        100 * trained / total,
    )
