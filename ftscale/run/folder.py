"""The run folder: what a run writes, and when its folder may be written over or gone on with."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ftscale.base.errors import UserError
from ftscale.base.files import open_to_append, own_id, remove, remove_partials, without_link
from ftscale.base.logs import log
from ftscale.base.sealed import DamagedError, content_hash, line_of, read_json, write_json
from ftscale.base.shown import shown
from ftscale.config import Config, load_config, parse_config, write_config
from ftscale.config.load import differences, public
from ftscale.config.own_task import file_hash, reading_of_strangers
from ftscale.config.resume import FREE_TO_CHANGE, LENGTH, SCHEDULED, is_of
from ftscale.config.stages import STAGES, stage_folders
from ftscale.data.sources import file_fingerprints
from ftscale.models.files import model_fingerprints
from ftscale.report.facts import DATA_REPORT, REPORT
from ftscale.train.manifest import newest_manifest
from ftscale.train.metrics_file import cut_metrics
from ftscale.train.row_records import ROWS, cut_row_records
from ftscale.version import __version__

LOCK = "lock.json"
LOCK_WAIT_S = 15.0  # a run that is asked to stop, or whose launcher died, still writes its checkpoint

HISTORY = "history.jsonl"
"""What was changed when the run was resumed, a line each time: time, after_step, changed."""

WRITTEN = (
    "config.yaml",
    HISTORY,
    "run.json",
    "data.json",
    DATA_REPORT,
    "metrics.jsonl",
    ROWS,
    REPORT,
    "result.json",
    "checkpoints",
    "model",
    "trackers",
    "logs",
    STAGES,
)
"""What a run writes into its folder."""
FOLDERS = ("checkpoints", ROWS, "model", "trackers", "logs", STAGES)
"""Those of them that are folders; some of them may be links to another disk."""

_IN_STAGE = re.compile(rf"^{STAGES}\.\d+\.")

MEANT = {"data": ("data.train", "data.eval"), "model": ("model.",)}
"""Beginnings of the settings that name the files of a section."""

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
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of metrics of the test rows, the interval that holds 95 of 100 samples of such rows; see metrics/bootstrap.py."""


def at_real_folder(config: Config) -> Config:
    """The configuration with the folder that `run_folder` leads to: links are followed once, here.

    Raises UserError for a link that leads to itself.
    """
    given = os.path.abspath(config.run_folder)
    real = os.path.realpath(given)
    if os.path.islink(real):
        raise UserError(f"run_folder = {config.run_folder} is a link that leads to itself; name another folder.")
    return config if real == given else config.model_copy(update={"run_folder": real})


def check_run_folder(config: Config, *, resume: bool, overwrite: bool) -> None:
    """Refuse to write over an earlier run, to go on with another one, or with none.

    Raises UserError: the folder holds a run and neither is asked; there is none to resume; settings of the run to
    resume differ, or the files of its data.
    """
    folder = Path(config.run_folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run_folder = {folder} is a file; name a folder.")
    if folder.is_dir() and Path(config.model.name).expanduser().resolve() == folder.resolve():
        raise UserError(
            f"run_folder = {folder} is the folder of model.name too, whose files a run would mix with its own; name "
            "another folder for the run."
        )
    places = (*(folder / name for name in (*WRITTEN, "slurm")), *stage_folders(folder))
    if strange := [place for place in places if _is_strange_link(place)]:
        raise UserError(
            f"run_folder = {folder}: {strange[0].name} is a link that another user has made; remove it, or name "
            "another folder."
        )
    if not holds_run(folder):
        if resume:
            raise UserError(_nothing_to_resume(folder))
        return
    if overwrite:
        _check_clearable(folder)
        return
    if not resume:
        raise UserError(
            f"run_folder = {folder} already holds a run; go on with it by --resume, replace it by --overwrite, or name "
            "another folder."
        )
    manifest = newest_manifest(folder / "checkpoints") or {}
    changed = _changed_settings(folder, config, manifest)
    problems = [
        f"cannot resume {folder}: {_shown(line)}; set it back, or start another run folder." for line in changed
    ]
    # where other files or another model are meant, that is said already
    meant = [part for part in ("data", "model") if any(line.startswith(MEANT[part]) for line in changed)]
    problems += _data_problems(folder, config, manifest, meant=meant)
    if problems:
        raise UserError(*problems)


def holds_run(folder: Path) -> bool:
    """Whether a run has begun in the folder; an empty folder in it, as a link to another disk may lead to, is none."""
    paths = [folder / name for name in WRITTEN]
    return any(path.exists() and not (path.is_dir() and not any(path.iterdir())) for path in paths)


def current_folder(folder: Path) -> Path:
    """Where a run writes its steps: the folder of the stage that began last, or its own."""
    return (stage_folders(folder) or [folder])[-1]


def final_folder(folder: Path) -> Path:
    """The run folder that belongs to the model of a run: of its last stage once that has ended, else its own."""
    return current_folder(folder) if (folder / "model").exists() else folder


def what_stands(folder: Path) -> tuple[bytes, ...]:
    """Return what differs once another run has taken the folder, or gone on in it."""
    return (str(holds_run(folder)).encode(), *first_files(folder))


def first_files(folder: Path) -> tuple[bytes, ...]:
    """The contents of what a start writes, or takes away, before it trains; b"" where there is no such file."""
    files = [folder / name for name in ("config.yaml", "run.json", "result.json")]
    return tuple(path.read_bytes() if path.is_file() else b"" for path in files)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder against a second run; a lock whose process is dead is free.

    Raises UserError where another process holds it for longer than LOCK_WAIT_S.
    """
    from filelock import FileLock, Timeout

    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = FileLock(without_link(folder / f".{LOCK}"))
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
    try:
        write_json(path, {"host": platform.node(), "process": os.getpid(), "since": _now()})
        yield
    finally:
        path.unlink(missing_ok=True)
        if is_new and [item.name for item in folder.iterdir()] == [f".{LOCK}"]:  # nothing was begun
            remove(folder)
        lock.release()


def clear_run_folder(folder: Path) -> None:
    """Delete what an earlier run wrote, and nothing else; what tells which run it was goes last.

    Of a link the link alone. Raises UserError where something cannot be deleted; nothing is deleted then.
    """
    _check_clearable(folder)
    for path in (folder / name for name in reversed(WRITTEN)):
        if path.is_symlink():
            log.info("%s is a link: what it leads to (%s) stays as it is", path, path.resolve())
        remove(path)
        remove_partials(path)


def _check_clearable(folder: Path) -> None:
    own = (folder / name for name in WRITTEN if not (folder / name).is_symlink())
    places = (folder, *(Path(place) for path in own for place, _, _ in os.walk(path)))
    if kept := [place for place in places if not os.access(place, os.W_OK | os.X_OK)]:
        raise UserError(
            f"run_folder = {folder}: nothing can be deleted in {kept[0]}, which this user may not write; change its "
            "permissions, or name another folder."
        )


def _is_strange_link(path: Path) -> bool:
    """Whether it is a link that is neither this user's nor root's."""
    return path.is_symlink() and path.lstat().st_uid not in (0, own_id(path.parent))


def run_id(folder: Path) -> str | None:
    """What tells this run's checkpoints from others'; None for a folder without a run.

    Where run.json is gone or damaged, the newest checkpoint says it.
    """
    path = folder / "run.json"
    why = "run_id is missing"
    try:
        if isinstance(identity := read_json(path).get("run_id"), str):
            return identity
    except FileNotFoundError:
        why = "it is gone"
    except DamagedError as error:
        why = str(error)
    manifest = newest_manifest(folder / "checkpoints")
    if manifest is None:
        return None
    log.warning("%s is not what was written (%s); the newest checkpoint says which run it is", path, why)
    return manifest["run_id"]


def open_run_folder(config: Config, *, run: dict[str, Any], step: int) -> dict[str, str]:
    """Write config.yaml, data.json and run.json (versions, machine, command, and `run`).

    `step`: of the checkpoint that the run goes on from, -1 = none; metrics.jsonl is cut behind it. Gives what the run's
    checkpoints say of it: run_id and data_digest.
    """
    folder = Path(config.run_folder)
    changed = _changed_at_resume(folder, config) if step >= 0 else []
    identity = _begin_in(folder, config)
    if changed:
        _note_change(folder, changed, step=step)
    fingerprints = _fingerprints(config)
    write_json(folder / "data.json", fingerprints, seal=False)
    cut_metrics(folder / "metrics.jsonl", after_step=step)
    cut_row_records(folder, after_step=step)
    write_json(folder / "run.json", _about(identity, run, hashes={"data.json": content_hash(fingerprints)}))
    return {"run_id": identity, "data_digest": _digest(fingerprints)}


def _changed_at_resume(folder: Path, config: Config) -> list[str]:
    """Every setting that is another than when the run was started last, free to change or not."""
    try:
        with reading_of_strangers():
            before = load_config(folder / "config.yaml")
    except UserError:  # gone or damaged: told when the folder was judged
        return []
    return [line for line in _all_differences(before, config) if _setting_of(line) != "run_folder"]


def _note_change(folder: Path, changed: list[str], *, step: int) -> None:
    """Say what is another from here on, in the log and in history.jsonl."""
    for line in changed:
        log.info("changed from step %d on: %s", step, _shown(line))
    with open_to_append(folder / HISTORY) as file:
        file.write(line_of({"time": _now(), "after_step": step, "changed": [_shown(line) for line in changed]}))


def open_whole_folder(config: Config, *, run: dict[str, Any]) -> None:
    """Write config.yaml and run.json of a run of several stages, each of which opens a run folder of its own."""
    folder = Path(config.run_folder)
    identity = _begin_in(folder, config)
    write_json(folder / "run.json", _about(identity, run, hashes={}))


def _begin_in(folder: Path, config: Config) -> str:
    """Clear up after starts that were killed, and write config.yaml; returns the run's id."""
    for name in (*WRITTEN, LOCK):
        remove_partials(folder / name)
    for path in (folder / name for name in FOLDERS):
        if path.is_symlink() and not path.exists():  # to a scratch disk that was cleared
            path.resolve().mkdir(parents=True)
    identity = run_id(folder) or uuid.uuid4().hex
    (folder / "result.json").unlink(missing_ok=True)
    write_config(config, folder / "config.yaml")
    return identity


def _about(identity: str, run: dict[str, Any], *, hashes: dict[str, str]) -> dict[str, Any]:
    """What run.json says: versions, machine, command, and `run`."""
    return {
        "run_id": identity,
        "versions": versions(),
        "python": platform.python_version(),
        "host": platform.node(),
        "device": _device_name(),
        **run,
        "git": _git_commit(),
        "command": [shown(argument) for argument in sys.argv],
        "started": _now(),
        "hashes": hashes,
    }


def finished_result(folder: Path) -> Result | None:
    """The result of a run that needs no more steps; None where there is none, or one that is not what was written."""
    path = folder / "result.json"
    try:
        found = _read_own(path)
        numbers = {name: math.nan if value is None else value for name, value in found["metrics"].items()}
        text = json.dumps({**found, "metrics": numbers})
        result = TypeAdapter(Result).validate_json(text, strict=True, extra="forbid")
    except FileNotFoundError:
        return None
    except (DamagedError, ValidationError, KeyError, AttributeError) as error:
        log.warning("%s is not what was written (%s); the run's end is done again", path, _why(error))
        return None
    return result if result.status in ("completed", "stopped_early") else None


def write_result(folder: Path, result: Result) -> None:
    """Write result.json, and its hash into run.json before."""
    said = asdict(result)
    try:
        about = read_json(folder / "run.json")
        write_json(folder / "run.json", {**about, "hashes": {**about["hashes"], "result.json": content_hash(said)}})
    except (FileNotFoundError, DamagedError, KeyError, TypeError) as error:
        log.warning("%s is not what was written (%s)", folder / "run.json", _why(error))
    write_json(folder / "result.json", said, seal=False)


def versions() -> dict[str, str]:
    """Versions of this code and of the libraries that a result depends on."""
    names = ("torch", "transformers", "accelerate", "peft", "deepspeed", "bitsandbytes", "datasets")
    return {"ftscale": __version__, **{name: _installed_version(name) for name in names}}


def _installed_version(name: str) -> str:
    """The version of a library, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _nothing_to_resume(folder: Path) -> str:
    near = folder.parent
    others = sorted(item.name for item in near.iterdir() if item.is_dir() and holds_run(item)) if near.is_dir() else []
    close = get_close_matches(folder.name, others, n=1, cutoff=0.5)
    hint = f"did you mean {near / close[0]}? Else leave" if close else "leave"
    return f"run_folder = {folder} holds no run that --resume could go on with; {hint} out --resume to begin one there."


def _changed_settings(folder: Path, config: Config, manifest: dict[str, Any]) -> list[str]:
    """Settings that are not those of the run, by config.yaml; where that is damaged, by the newest checkpoint."""
    path = folder / "config.yaml"
    try:
        with reading_of_strangers():
            before = load_config(path) if path.is_file() else None
        changed = _differences(before, config) if before is not None else ["config.yaml is gone"]
    except UserError as error:
        changed = [f"{problem.removesuffix('.')}" for problem in error.problems]
    if changed and (kept := manifest.get("config")):
        with reading_of_strangers():
            stored = parse_config(kept, source="the newest checkpoint")
        changed_since = _differences(stored, config)
        if not changed_since:
            log.warning("%s is not what was written (%s); by the newest checkpoint all is the same", path, changed[0])
        return changed_since
    return changed if path.is_file() else []  # killed before it was written, there was nothing to go on from


def _differences(before: Config, config: Config) -> list[str]:
    """Settings that are others and may not be."""
    free = (*FREE_TO_CHANGE, *(() if _has_stages(config) else SCHEDULED))
    return [line for line in _all_differences(before, config) if not is_of(_setting_of(line), free)]


def _setting_of(difference: str) -> str:
    """The name of the setting that a line of `differences` is about; of a stage's, its name in the stage."""
    return _IN_STAGE.sub("", difference).partition(": ")[0]


def _all_differences(before: Config, config: Config) -> list[str]:
    before, config = _written_out(before), _written_out(config)
    return differences(public(before), public(_comparable(config, before)))


def _has_stages(config: Config) -> bool:
    """Whether it is a run of several stages, or one of these."""
    return bool(config.stages) or Path(os.path.abspath(config.run_folder)).parent.name == STAGES


def given_anew(manifest: dict[str, Any], config: Config, *, of: Sequence[str]) -> bool:
    """Whether one of these settings is not what it was when a checkpoint was written."""
    before, now = manifest["config"], public(config).model_dump(mode="json")
    return any(_at(before, name) != _at(now, name) for name in of)


def _at(values: Any, name: str) -> Any:
    """The value of a setting; None where an earlier version did not have it."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def began_with_dropout(folder: Path, config: Config) -> str:
    """How dropout draws in the run that goes on there, by its newest checkpoint; else what `train.dropout` asks for.

    A checkpoint that does not say was written when dropout drew by process alone.
    """
    manifest = newest_manifest(folder / "checkpoints")
    if manifest is None or manifest["run_id"] != run_id(folder):
        return config.train.dropout
    return manifest.get("dropout", "by_process")


def goes_on(result: Result, config: Config, *, num_steps: int) -> bool:
    """Whether a run that has ended was given more steps since, or more patience."""
    return result.steps < num_steps and is_given_more(config)


def is_given_more(config: Config) -> bool:
    """Whether the settings of a run's length are others than in its newest checkpoint, or than it ended with.

    A start that made the run shorter than its checkpoint says may have ended it. Those of stages never count.
    """
    if _has_stages(config):
        return False
    folder = Path(config.run_folder)
    newest = newest_manifest(folder / "checkpoints")
    if newest is None:
        return False
    changed = {_setting_of(line) for line in _changed_at_resume(folder, config)}
    return given_anew(newest, config, of=LENGTH) or not changed.isdisjoint(LENGTH)


def _written_out(config: Config) -> Config:
    """What a setting names a file for is what the file says, and a model of another stage as it is seen from this one.

    Raises UserError where the file is not there any more.
    """
    from ftscale.tasks import task_class

    task = task_class(config.task).written_out(config.task)
    name = _from_stage(config, config.model.name)
    return config.model_copy(update={"task": task, "model": config.model.model_copy(update={"name": name})})


def _from_stage(config: Config, path: str) -> str:
    """A path in the folder of another stage, relative to this stage's: the whole may be moved. Others as they are."""
    folder = Path(os.path.abspath(config.run_folder))
    if folder.parent.name == STAGES and Path(os.path.abspath(path)).is_relative_to(folder.parent):
        return os.path.relpath(path, folder)
    return path


def _shown(difference: str) -> str:
    if "\\n" in difference:  # of pages of text, which stand there as JSON writes them
        return f"the text of {difference.partition(':')[0]} is not what it was (config.yaml there has it)"
    return difference


def _comparable(config: Config, before: Config) -> Config:
    """The configuration with what the first start learned from the data filled in, where it leaves that open."""
    if type(config.task) is not type(before.task):
        return config
    learned = {
        name: getattr(before.task, name)
        for name, open_value in config.task.learned.items()
        if getattr(config.task, name) == open_value
    }
    return config.model_copy(update={"task": config.task.model_copy(update=learned)})


def _data_problems(folder: Path, config: Config, manifest: dict[str, Any], *, meant: list[str]) -> list[str]:
    """Files whose content is not what it was when the run began, by data.json.

    Where that is damaged, the newest checkpoint tells whether there are any. `meant`: the sections whose settings name
    other files.
    """
    path = folder / "data.json"
    if not path.is_file():
        return []
    now = {} if "data" in meant else _data_fingerprints(config)
    now |= {} if "model" in meant else _model_fingerprints(config)
    now |= _own_fingerprints(config)
    try:
        recorded = TypeAdapter(dict[str, dict[str, str]]).validate_python(_read_own(path), strict=True)
    except (DamagedError, ValidationError) as error:
        if manifest.get("data_digest") == _digest(now):
            log.warning(
                "%s is not what was written (%s); by the newest checkpoint the data is the same", path, _why(error)
            )
            return []
        return [
            f"cannot resume {folder}: {path} is not what was written ({_why(error)}), and the newest checkpoint does "
            "not say that the data is the same; start another run folder."
        ]
    problems = []
    for setting, files in recorded.items():
        section = setting.partition(".")[0]
        if section in meant:
            continue
        differing = _changed_files(files, now.get(setting, {}))
        changed = [f"{path} {how}" for path, how in differing.items() if not _is_code(path, section)]
        if code := [f"{path} {how}" for path, how in differing.items() if _is_code(path, section)]:
            log.warning("the model's code is not what it was: %s; the run goes on with it as it is", ", ".join(code))
        more = f", and {len(changed) - NAMED_FILES} more" if len(changed) > NAMED_FILES else ""
        name = f"{setting}.path" if section == "data" else setting
        if changed:
            problems.append(
                f"cannot resume {folder}: {name}: {', '.join(changed[:NAMED_FILES])}{more}; put the {section} back "
                "as it was when the run began, or start another run folder."
            )
    return problems


def _read_own(path: Path) -> dict[str, Any]:
    """What a file says whose hash run.json holds. Raises FileNotFoundError, DamagedError."""
    found = read_json(path)
    try:
        digest = read_json(path.with_name("run.json"))["hashes"][path.name]
    except (FileNotFoundError, DamagedError, KeyError, TypeError):
        return found  # by itself
    if digest != content_hash(found):
        raise DamagedError("it has other content than when it was written")
    return found


def _digest(fingerprints: dict[str, dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest()


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, DamagedError) else "its fields are others"


def _is_code(path: str, section: str) -> bool:
    """Whether it is the model's own code, which somebody mends whose run an error in it has ended."""
    return section == "model" and path.endswith(".py")


def _changed_files(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """What happened to each file that is not as it was, by its path."""
    happened = {path: "is gone" for path in before if path not in now}
    happened |= {path: "has changed" for path in before if path in now and before[path] != now[path]}
    return happened | {path: "is new" for path in now if path not in before}


def _fingerprints(config: Config) -> dict[str, dict[str, str]]:
    """A hash of each file that training and evaluation read, by setting and path: rows, images, the base model.

    And of the files that describe task and method, where they are the user's own, and of the frozen models they name.
    """
    return _data_fingerprints(config) | _model_fingerprints(config) | _own_fingerprints(config)


def _model_fingerprints(config: Config) -> dict[str, dict[str, str]]:
    found = model_fingerprints(config.model)
    return {
        setting: {_from_stage(config, path): digest for path, digest in files.items()}
        for setting, files in found.items()
    }


def _own_fingerprints(config: Config) -> dict[str, dict[str, str]]:
    from ftscale.methods import build_method
    from ftscale.tasks.base import frozen_models

    sections = {"task": config.task, "method": config.method}
    hashes = {name: file_hash(settings, section=name) for name, settings in sections.items()}
    found = {
        f"{name}.file": {Path(sections[name].model_dump()["file"]).name: own} for name, own in hashes.items() if own
    }
    for companion in frozen_models(build_method(config.method, config.task)):
        files = model_fingerprints(companion.model)["model.name"]
        found[f"task.{companion.name}"] = {Path(path).name: content for path, content in files.items()}
    return found


def _data_fingerprints(config: Config) -> dict[str, dict[str, str]]:
    roles = config.task.columns
    return {
        f"data.{part}[{index}]": file_fingerprints(source, setting=f"data.{part}[{index}]", roles=roles)
        for part, sources in (("train", config.data.train), ("eval", config.data.eval))
        for index, source in enumerate(sources)
    }


def _holder(path: Path) -> str:
    try:
        lock = read_json(path)
        return f"process {lock['process']} on {lock['host']} since {lock['since']}"
    except (FileNotFoundError, DamagedError, KeyError):
        return "another process"


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
