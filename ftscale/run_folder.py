"""The run folder: what a run writes, and when its folder may be written over or gone on with."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ftscale.config import Config, load_config, write_config
from ftscale.config.load import differences
from ftscale.config.schema import CausalLMSettings
from ftscale.data.chat import read_template
from ftscale.data.sources import file_fingerprints
from ftscale.errors import UserError
from ftscale.logs import log
from ftscale.models.files import model_fingerprints
from ftscale.tasks import COLUMNS
from ftscale.train.meters import cut_metrics

LOCK = "lock.json"
LOCK_WAIT_S = 15.0  # a run that is asked to stop, or whose launcher died, still writes its checkpoint

WRITTEN = (
    "config.yaml",
    "run.json",
    "data.json",
    "metrics.jsonl",
    "result.json",
    "checkpoints",
    "model",
    "trackers",
    "logs",
)
"""What a run writes into its folder."""

FREE_TO_CHANGE = (
    "run_folder",
    "batch.micro_tokens",
    "batch.micro_size",
    "batch.layout",
    "data.num_workers",
    "data.prepare_workers",
    "data.cache_dir",
    "data.test",
    "train.log_every",
    "train.trackers",
    "train.activation_checkpointing",
    "evaluation",
    "checkpoint",
    "distributed",
    "model.attention",
)
"""Settings that a resumed run may change: the global batches and their gradients do not depend on them."""

LEARNED = {"labels": None, "scheme": "auto"}
"""Settings of a task that the training rows fill in where they have these values."""

NAMED_FILES = 3  # changed files named in a message, of each source


@dataclass(frozen=True)
class Result:
    """How a run ended, as in its result.json."""

    status: str
    """completed, stopped_early, preempted or failed."""
    steps: int
    """Optimizer steps done."""
    metrics: dict[str, float]
    """Of the final weights on the evaluation rows; of the test rows with names `test/...`."""
    best: dict[str, Any] | None
    """Step and value of the best evaluation."""
    duration_s: float
    """Training time over all starts."""
    model: str
    """Folder of the saved model; "" while there is none."""


def check_run_folder(config: Config, *, resume: bool, overwrite: bool) -> None:
    """Refuse to write over an earlier run, or to go on with another one.

    Raises UserError: the folder holds a run and neither is asked; settings of the run to resume differ, or the files
    of its data.
    """
    folder = Path(config.run_folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run_folder = {folder} is a file; name a folder.")
    if overwrite or not any((folder / name).exists() for name in WRITTEN):
        return
    if not resume:
        raise UserError(
            f"run_folder = {folder} already holds a run; go on with it by --resume, replace it by --overwrite, or name "
            "another folder."
        )
    if not (folder / "config.yaml").is_file():
        return
    before, now = _with_template_text(load_config(folder / "config.yaml")), _with_template_text(config)
    changed = [line for line in differences(before, _comparable(now, before)) if not line.startswith(FREE_TO_CHANGE)]
    problems = [
        f"cannot resume {folder}: {_shown(line)}; set it back, or start another run folder." for line in changed
    ]
    problems += _data_problems(folder, before, config)
    if problems:
        raise UserError(*problems)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder against a second run; a lock whose process is dead is free.

    Raises UserError where another process holds it for longer than LOCK_WAIT_S.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = FileLock(folder / f".{LOCK}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("run_folder = %s is in use (%s); waiting up to %.0f s", folder, _holder(path), LOCK_WAIT_S)
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout as error:
            raise UserError(
                f"run_folder = {folder} is in use by {_holder(path)}; wait for it, stop it, or name another folder."
            ) from error
    except NotImplementedError:
        log.warning("the file system of run_folder = %s has no locks: a second run on it would not be noticed", folder)
    if path.exists():
        log.info("taking over the lock of %s, which has ended without giving it back", _holder(path))
    write_json(path, {"host": platform.node(), "process": os.getpid(), "since": _now()})
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if [item.name for item in folder.iterdir()] == [f".{LOCK}"]:  # nothing was begun
            shutil.rmtree(folder)
        lock.release()


def clear_run_folder(folder: Path) -> None:
    """Delete what an earlier run wrote, and nothing else."""
    for name in WRITTEN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_id(folder: Path) -> str | None:
    """What tells this run's checkpoints from others'; None for a folder without a run."""
    path = folder / "run.json"
    return json.loads(path.read_text())["run_id"] if path.is_file() else None


def open_run_folder(config: Config, *, run: dict[str, Any], step: int) -> str:
    """Write config.yaml, data.json and run.json (versions, machine, command, and `run`); gives the run's id.

    `step`: of the checkpoint that the run goes on from, -1 = none; metrics.jsonl is cut behind it.
    """
    folder = Path(config.run_folder)
    identity = run_id(folder) or uuid.uuid4().hex
    (folder / "result.json").unlink(missing_ok=True)
    write_config(config, folder / "config.yaml")
    write_json(folder / "data.json", _fingerprints(config))
    cut_metrics(folder / "metrics.jsonl", after_step=step)
    about = {
        "run_id": identity,
        "versions": versions(),
        "python": platform.python_version(),
        "host": platform.node(),
        "device": _device_name(),
        **run,
        "git": _git_commit(),
        "command": sys.argv,
        "started": _now(),
    }
    write_json(folder / "run.json", about)
    return identity


def finished_result(folder: Path) -> Result | None:
    """The result of a run that needs no more steps; None where there is none."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = Result(**json.loads(path.read_text()))
    return result if result.status in ("completed", "stopped_early") else None


def write_result(folder: Path, result: Result) -> None:
    """Write result.json."""
    write_json(folder / "result.json", asdict(result))


def write_json(path: Path, value: Any) -> None:
    """Complete or not at all; numbers that are not finite become null, which JSON has."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(_finite(value), indent=2) + "\n")
    os.replace(partial, path)


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    names = ("ftscale", "torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "datasets")
    return {name: installed_version(name) for name in names}


def installed_version(name: str) -> str:
    """The version of a library, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _with_template_text(config: Config) -> Config:
    """A chat template is what its file says, wherever it lies. Raises UserError where it is not there any more."""
    if not isinstance(config.task, CausalLMSettings):
        return config
    text = {"chat_template": read_template(config.task.chat_template)}
    return config.model_copy(update={"task": config.task.model_copy(update=text)})


def _shown(difference: str) -> str:
    if difference.startswith("task.chat_template: "):  # of pages of text
        return "the text of task.chat_template is not what it was (config.yaml there has it)"
    return difference


def _comparable(config: Config, before: Config) -> Config:
    """The configuration with what the first start learned from the data filled in, where it leaves that open."""
    if type(config.task) is not type(before.task):
        return config
    learned = {
        name: getattr(before.task, name)
        for name, open_value in LEARNED.items()
        if name in type(config.task).model_fields and getattr(config.task, name) == open_value
    }
    return config.model_copy(update={"task": config.task.model_copy(update=learned)})


def _data_problems(folder: Path, before: Config, config: Config) -> list[str]:
    """Files whose content is not what it was when the run began; sources and models with other settings are named
    already."""
    path = folder / "data.json"
    if not path.is_file():
        return []
    now: dict[str, dict[str, str]] = {}
    if (before.data.train, before.data.eval) == (config.data.train, config.data.eval):
        now |= _data_fingerprints(config)
    if before.model == config.model:
        now |= model_fingerprints(config.model)
    problems = []
    for setting, files in json.loads(path.read_text()).items():
        if setting not in now:
            continue
        section = setting.partition(".")[0]
        changed = list(_changed_files(files, now[setting]))
        more = f", and {len(changed) - NAMED_FILES} more" if len(changed) > NAMED_FILES else ""
        name = f"{setting}.path" if section == "data" else setting
        if changed:
            problems.append(
                f"cannot resume {folder}: {name}: {', '.join(changed[:NAMED_FILES])}{more}; put the {section} back "
                "as it was when the run began, or start another run folder."
            )
    return problems


def _changed_files(before: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for path in {**before, **now}:
        if path not in now:
            yield f"{path} is gone"
        elif path not in before:
            yield f"{path} is new"
        elif before[path] != now[path]:
            yield f"{path} has changed"


def _fingerprints(config: Config) -> dict[str, dict[str, str]]:
    """A hash of each file that training and evaluation read, by setting and path: rows, images, the base model."""
    return _data_fingerprints(config) | model_fingerprints(config.model)


def _data_fingerprints(config: Config) -> dict[str, dict[str, str]]:
    roles = COLUMNS[config.task.name]
    return {
        f"data.{part}[{index}]": file_fingerprints(source, setting=f"data.{part}[{index}]", roles=roles)
        for part, sources in (("train", config.data.train), ("eval", config.data.eval))
        for index, source in enumerate(sources)
    }


def _holder(path: Path) -> str:
    try:
        lock = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return "another process"
    return f"process {lock['process']} on {lock['host']} since {lock['since']}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def _git_commit() -> str | None:
    """The commit of the repository in the working folder: the user's own, where there is one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
