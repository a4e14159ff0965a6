"""The stages of a run: what each of them is trained with, merged from its own settings and the run's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ftscale.base.errors import UserError
from ftscale.config.compatibility import PROMPT_METHODS
from ftscale.config.problems import problems_of
from ftscale.config.schema import Config, HeadConfig, ModelConfig, SourceConfig

STAGES = "stages"
"""The folder in a run folder that holds the stages'."""
MODEL, MERGED = "model", "merged"
"""In a stage's folder, its saved model, and the whole model that its adapter was merged into."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_HANDED_ON = ("name", "revision", "processor", "init")
"""Settings of `model` that say which model a run begins with: of a later stage, the one before decides that."""


@dataclass(frozen=True)
class Stage:
    """One of the runs that a run of several stages is made of."""

    name: str
    """Its number, from 1, and the name that it was given: 1-head."""
    config: Config
    """A run of its own, in `stages/<name>` of the run folder; of a later one, `model.name` is what the stage before
    hands on."""
    first_model: ModelConfig
    """The model that the first stage begins with."""

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.run_folder)

    @property
    def handed_on(self) -> Path:
        """The model that the next stage begins with: the saved one, or the one that its adapter was merged into."""
        return self.folder / (MODEL if self.config.adapter.method == "none" else MERGED)

    @property
    def beforehand(self) -> Config:
        """The configuration while the stage before has not ended: with the first stage's model, which is made alike."""
        first = {name: getattr(self.first_model, name) for name in ("name", "revision", "processor")}
        return self.config.model_copy(update={"model": self.config.model.model_copy(update=first)})


def stage_folders(folder: Path) -> list[Path]:
    """The run folders of the stages that have begun, in their order; none where a run has no stages."""
    found = ((path.name.partition("-")[0], path) for path in (folder / STAGES).glob("*"))
    return [path for _, path in sorted((int(number), path) for number, path in found if number.isdecimal())]


def stages_of(config: Config) -> list[Stage]:
    """The stages of a run in their order; none of a run that has no `stages`.

    Raises UserError with all that the schema refuses in them, and where one cannot go on from the one before.
    """
    found: list[Stage] = []
    said: list[str] = []
    problems: dict[str, Sequence[str]] = {}
    for place, written in enumerate(config.stages):
        said += _own_problems(written, place)
        name = str(place + 1) if written.get("name") is None else f"{place + 1}-{written['name']}"
        problems[name] = []
        try:
            stage = _stage(
                config, {key: value for key, value in written.items() if key != "name"}, name, later=place > 0
            )
        except UserError as error:
            problems[name] = error.problems
            continue
        if found:
            problems[name] = _handing_on_problems(found, stage)
            stage = _after(found[-1], stage)
        found.append(stage)
    if all_problems := [*said, *by_stage(problems)]:
        raise UserError(*all_problems)
    read = {role for one in [config, *(stage.config for stage in found)] for role in _roles(one)}
    return [replace(stage, config=_with_own_columns(stage.config, read)) for stage in found]


def by_stage(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """The problems of each stage, with its name before them; those that all stages have come once and without."""
    lists = list(problems.values())
    shared = [problem for problem in lists[0] if all(problem in own for own in lists[1:])] if len(lists) > 1 else []
    own = [f"stage {name}: {problem}" for name, own in problems.items() for problem in own if problem not in shared]
    return [*shared, *own]


def merged(section: BaseModel, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section with some laid over them, as nested dicts.

    Sections in it are merged in the same way; every other value takes the place of the one before as a whole. A `task`,
    a `method` or an `adapter` of another name stands alone: the settings of the one before are not its own.
    """
    settings = section.model_dump()
    fields = type(section).model_fields
    before = {getattr(fields.get(name), "alias", None) or name: value for name, value in section}
    for key, value in changes.items():
        own = before.get(key)
        if key in ("task", "method", "model") and isinstance(value, str):
            value = {"name": value}
        if isinstance(own, BaseModel) and isinstance(value, dict) and not _is_another(key, own, value):
            value = merged(own, value)
        settings[key] = value
    return settings


def _is_another(key: str, own: BaseModel, value: dict[str, Any]) -> bool:
    """Whether it is another task, method or kind of adapter than the section that it is laid over."""
    if key in ("task", "method") and isinstance(value.get("file"), str):
        return str(Path(value["file"]).expanduser().resolve()) != getattr(own, "file", None)
    kind = {"task": "name", "method": "name", "adapter": "method"}.get(key)
    return kind is not None and value.get(kind, getattr(own, kind)) != getattr(own, kind)


def _own_problems(written: Mapping[str, Any], place: int) -> list[str]:
    """What is wrong with what a stage says of itself and not of its run."""
    where, name, model = f"stages[{place}]", written.get("name"), written.get("model")
    problems = [
        f"{where}.{key} is not for a stage, which has its folder in the run's, and no stages; leave it out."
        for key in ("run_folder", "stages")
        if key in written
    ]
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        problems.append(
            f"{where}.name = {name!r} is a part of its folder's name and must be made of letters, digits, - and _, the "
            "first no sign; set another name."
        )
    if place:
        keys = ["name"] if isinstance(model, str) else [key for key in _HANDED_ON if key in (model or {})]
        problems += [
            f"{where}.model.{key} is not for a later stage, which goes on with the model of the one before; leave it "
            "out, or make it the first stage's."
            for key in keys
        ]
    return problems


def _stage(config: Config, changes: dict[str, Any], name: str, *, later: bool) -> Stage:
    """A stage, still with the run's model. `config`: of the whole run; a later stage's model has its head already."""
    update = {"stages": (), "head": HeadConfig()} if later else {"stages": ()}
    settings = merged(config.model_copy(update=update), changes)
    settings["run_folder"] = f"{config.run_folder}/{STAGES}/{name}"
    failure: ValidationError | None = None
    try:
        own = Config.model_validate(settings)
    except ValidationError as error:
        failure = error
    if problems := problems_of(failure, model=Config, data=settings):
        raise UserError(*problems) from failure
    return Stage(name, own, own.model)


def _after(before: Stage, stage: Stage) -> Stage:
    """The stage with the model that the one before hands on."""
    handed_on = {"name": str(before.handed_on), "revision": None, "processor": None, "init": "pretrained"}
    model = stage.config.model.model_copy(update=handed_on)
    return Stage(stage.name, stage.config.model_copy(update={"model": model}), before.first_model)


def _roles(config: Config) -> set[str]:
    """The columns that a task reads, those that its scores are told apart by, and the one of a stratified split."""
    roles = {role for alternative in config.evaluation.with_groups(config.task.roles) for role in alternative}
    return roles | ({config.data.stratify} if config.data.stratify else set())


def _with_own_columns(config: Config, read: Set[str]) -> Config:
    """Stages may share rows: names of columns that another one's task reads, and this one's does not, are left out."""
    others = read - _roles(config)
    data = config.data
    parts = {part: getattr(data, part) for part in ("train", "eval", "test")}
    if others.isdisjoint(role for sources in parts.values() for one in sources for role in (*one.columns, *one.set)):
        return config
    own = {part: tuple(_without(source, others) for source in sources) for part, sources in parts.items()}
    return config.model_copy(update={"data": data.model_copy(update=own)})


def _without(source: SourceConfig, roles: Set[str]) -> SourceConfig:
    kept = {
        key: {role: value for role, value in getattr(source, key).items() if role not in roles}
        for key in ("columns", "set")
    }
    return source.model_copy(update=kept)


def _handing_on_problems(earlier: Sequence[Stage], stage: Stage) -> list[str]:
    """Why a stage cannot go on with what the one before leaves."""
    problems, method = [], earlier[-1].config.adapter.method
    if method in PROMPT_METHODS:
        problems.append(
            f"the stage before has adapter.method = {method}, which learns a prompt that cannot be merged into "
            "weights; make it the last stage, or take a method like lora."
        )
    if stage.config.head.hidden_sizes and any(one.config.head.hidden_sizes for one in earlier):
        problems.append(
            "head.hidden_sizes asks for an MLP head, and an earlier stage has given the model one already; leave out "
            "head to train it further."
        )
    return problems
