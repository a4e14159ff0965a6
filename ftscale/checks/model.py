"""The model without its weights: what settings ask of it, and whether its files hold what it needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.config import Config
from ftscale.config.strategies import default_strategy, find_strategy
from ftscale.models.adapt import count_parameters
from ftscale.models.head import replace_head
from ftscale.models.layout import choose_layout
from ftscale.models.load import load_model, load_model_config, load_small_twin
from ftscale.models.sizes import MOST_PARAMETERS
from ftscale.run.build_model import build_model
from ftscale.run.disk import disk_problems
from ftscale.tasks.base import Task

ANY_STEPS = 1000
"""A number of optimizer steps for adapters that plan over them; steps_problems judges the run's own."""
WITHOUT_NUMBERS = ("meta tensor", "Meta tensor", "meta device", "'Meta'")
"""What torch says where numbers are asked of weights that are not there."""


def model_problems(config: Config, task: Task, *, here: bool) -> tuple[list[str], list[str]]:
    """What training would refuse when it builds the model: weights, head, adapter, frozen parts, layout, disk.

    Besides, warnings of what cannot be known. `task`: with its labels; `here`: on this machine; else its files may come
    and its disk be emptied until the start, so that these are warnings. No weights are read or made.
    """
    files = _file_problems(config, task)
    if files and here:
        return files, []
    try:
        if config.batch.layout == "flat" and "flat" in task.layouts:
            _check_flat(config, task)
        model = empty_model(config, task)
    except (UserError, RuntimeError, NotImplementedError) as error:
        # an adapter that makes its weights by numbers (unilora), or a model's own code
        if not isinstance(error, UserError) or any(words in str(error) for words in WITHOUT_NUMBERS):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            untried = f"the model cannot be tried without its weights ({reason}); use --deep to try it with them."
            return [], [*files, untried]
        return list(error.problems), files
    _, number = count_parameters(model)
    if number > MOST_PARAMETERS:
        return [
            f"model.name = {config.model.name!r} has {number} parameters by its config, more than any model "
            f"({MOST_PARAMETERS}); see the sizes in its config.json and in model.overrides."
        ], files
    strategy = find_strategy(config.distributed.strategy)
    disk = disk_problems(config, model, sharded=strategy is not None and strategy.is_zero)
    return (disk, files) if here else ([], [*files, *disk])


def empty_model(config: Config, task: Task, *, overrides: dict[str, Any] | None = None) -> Any:
    """The model as training builds it, on the meta device; the base not quantised. `overrides`: of its config."""
    fields = dict(config.model.overrides)
    if task.modality.in_tokens:
        model_config = load_model_config(config.model, settings={})
        text = model_config.get_text_config()
        if len(task.processor) > text.vocab_size and text is model_config:
            fields["vocab_size"] = len(task.processor)  # the embedding grows for the tokenizer
    fields |= overrides or {}
    update = {"init": "random", "quantization": "none", "overrides": fields}
    plain = config.model_copy(
        update={
            "model": config.model.model_copy(update=update),
            "batch": config.batch.model_copy(update={"layout": "padded"}),
        }
    )
    with quiet(), torch.device("meta"):
        return build_model(plain, task, _NoGroup(), num_steps=ANY_STEPS).model  # type: ignore[arg-type]


@contextmanager
def quiet() -> Iterator[None]:
    """What building says about random weights and counts is not about the run."""
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


class _NoGroup:
    """Stands for `Distributed` where a model is built in no memory and without processes."""

    device = torch.device("meta")
    strategy = default_strategy(1)

    def whole_weights(self) -> AbstractContextManager[None]:
        return nullcontext()


def _file_problems(config: Config, task: Task) -> list[str]:
    """Names and shapes of the weights in a local folder; those of the hub are not looked at."""
    if config.model.init == "random" or not Path(config.model.name).expanduser().is_dir():
        return []
    plain = config.model.model_copy(update={"quantization": "none"})
    try:
        with quiet():
            model = load_model(
                plain,
                auto_class=task.auto_class,
                settings=task.model_settings(),
                dtype=torch.float32,
                seed=config.seed,
                device="meta",
            )
            replace_head(model, config.head, seed=config.seed)  # refused where the files have such a head already
    except UserError as error:
        return list(error.problems)
    except (RuntimeError, NotImplementedError):  # a model's own code, of which building it below tells
        return []
    return []


def _check_flat(config: Config, task: Task) -> None:
    with quiet():
        twin = load_small_twin(config.model, auto_class=task.auto_class, settings=task.model_settings())
        choose_layout(
            twin,
            wanted="flat",
            attention=config.model.attention,
            pooled=task.pools,
            encoder_decoder=bool(twin.config.is_encoder_decoder),
        )
