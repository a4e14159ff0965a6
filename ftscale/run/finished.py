"""A finished run as it is read again: its configuration, its task, its model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.base.sealed import DamagedError, read_json
from ftscale.base.startup import begin_work
from ftscale.config import Config, load_config
from ftscale.config.own_task import reading_of_strangers
from ftscale.methods import build_method
from ftscale.methods.base import Method
from ftscale.methods.extra import FILE, load_extra
from ftscale.models.save import load_saved
from ftscale.models.trust import NeedsCodeError, Trust, needed_code
from ftscale.run.folder import final_folder
from ftscale.tasks.base import Task
from ftscale.train.loop import TaskModule


def read_run(run_folder: Path, *, trust: Trust) -> tuple[Config, Method]:
    """The run's configuration and task; what its folder says of trust gives way to what the user does."""
    if not (run_folder / "config.yaml").is_file():
        raise UserError(f"RUN_FOLDER = {run_folder} holds no run (no config.yaml in it); name the run_folder of one.")
    if not (run_folder / "model").is_dir():
        raise UserError(f"RUN_FOLDER = {run_folder} has no model yet; finish the run with ftscale train --resume.")
    with nullcontext() if trust.code else reading_of_strangers():
        config = load_config(final_folder(run_folder) / "config.yaml")
    trusted = config.model.model_copy(update={"trust_remote_code": trust.code, "allow_pickle": trust.pickle})
    return config.model_copy(update={"model": trusted}), build_method(config.method, config.task)


def bound_task(run_folder: Path, config: Config, task: Method) -> Method:
    """The task with the processor that was saved with the model."""
    folder = run_folder / "model"
    saved = config.model.model_copy(update={"name": str(folder), "processor": None, "revision": None})
    try:
        processor = task.modality.load_processor(saved)
    except NeedsCodeError as error:
        raise needed_code(folder) from error
    return build_method(config.method, config.task, processor).after(_scores(run_folder))


def _scores(run_folder: Path) -> Mapping[str, Any]:
    """What the run noted of its chosen evaluation; nothing where that is gone or damaged."""
    try:
        scores = read_json(final_folder(run_folder) / "result.json").get("metrics")
    except (OSError, DamagedError):
        return {}
    return scores if isinstance(scores, dict) else {}


def load_model(run_folder: Path, config: Config, task: Task) -> Any:
    """The run's saved model, in the precision that it was trained in."""
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    say_what_is_left_out(run_folder, config)
    begin_work()
    return load_saved(
        run_folder / "model",
        auto_class=task.auto_class,
        dtype=dtype,
        trust=Trust(code=config.model.trust_remote_code, pickle=config.model.allow_pickle),
    )


def module_of(run_folder: Path, model: Any, task: Method) -> TaskModule:
    """Model and method in one, with the weights of its own that the method has learned.

    Raises UserError where these are not beside the model.
    """
    module = TaskModule(model, task)
    if not load_extra(task, run_folder / "model") and len(task.extra):
        raise UserError(
            f"RUN_FOLDER = {run_folder}: the model folder lacks the weights that method = {task.own.name} has learned "
            f"({FILE}); copy the folder whole."
        )
    return module


def say_what_is_left_out(run_folder: Path, config: Config) -> None:
    """Warn where the run was trained with code that is not run now."""
    with reading_of_strangers():
        said = load_config(final_folder(run_folder) / "config.yaml").model.trust_remote_code
    if said and not config.model.trust_remote_code:
        log.warning("the run was trained with code that came with its model; without --trust-remote-code it is not run")
