"""What can be known to be wrong before any row is prepared: every problem of a configuration in one report."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ftscale.base.errors import UserError, unknown_name
from ftscale.config import Config, parse_config
from ftscale.config.compatibility import check_combination
from ftscale.config.load import read_settings, settings_source
from ftscale.config.schema import (
    AdapterConfig,
    DataConfig,
    DistributedConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    ReportConfig,
    ScheduleConfig,
    TrainableConfig,
)
from ftscale.config.stages import by_stage, stages_of
from ftscale.config.strategies import find_strategy
from ftscale.config.tasks import SETTINGS
from ftscale.train.tracker_kinds import option_names

if TYPE_CHECKING:
    from ftscale.modalities.base import Modality
    from ftscale.tasks.base import Task

MANY_STEPS = 10**9  # stands for a number of optimizer steps that only the prepared data can tell


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """`load_config`; where settings are wrong, the report also holds the unknown names in the sections that are right.

    Raises UserError. Nothing heavy is imported for a configuration that is right.
    """
    settings, source = read_settings(path, overrides), settings_source(path, overrides)
    try:
        return parse_config(settings, source=source)
    except UserError as error:
        more = [f"{source}: {problem}" for problem in _section_problems(settings)]
        raise UserError(*error.problems, *more) from error


def check_config(config: Config, *, runs_code: bool = True) -> Any:
    """Raise UserError with all that is wrong with names, combinations, the model's config and the data's columns.

    Of each source the first row is read; no weights are loaded, and nothing is written. Returns the tokenizer or image
    processor, which checking loads anyway, fitted to the model; None where it will be built of what the training rows
    tell. `runs_code`: code that comes with the model is run where the configuration trusts it; else None is returned
    where model or processor cannot be had without.
    """
    from ftscale.methods import build_method
    from ftscale.models.load import load_model_config
    from ftscale.models.trust import NeedsCodeError, without_code

    task = build_method(config.method, config.task)
    passed_over = NeedsCodeError if config.model.trust_remote_code and not runs_code else ()
    if not runs_code:
        config = config.model_copy(update={"model": without_code(config.model)})
    problems = [
        *_strategy_problems(config),
        *_optimizer_problems(config.optimizer),
        *steps_problems(config, num_steps=None),
        *_report_problems(config.report),
    ]
    problems += _frozen_problems(config, task, runs_code=runs_code)
    model_config = processor = None
    found = True
    try:
        model_config = load_model_config(config.model, settings={})
        problems += [*task.model_problems(config, model_config), *_part_problems(config, task, model_config)]
    except passed_over:
        pass  # the caller says what is not looked at
    except UserError as error:
        problems += error.problems
        found = _is_found(config)
    if found or config.model.processor:  # a model that is not there has no tokenizer either: one mistake
        try:
            processor = _processor_at_hand(config.model, task.modality)
        except passed_over:
            pass
        except UserError as error:
            problems += error.problems
    if model_config is not None and processor is not None:
        problems += fit_problems(config, model_config, processor)
    problems += source_problems(config.data, roles=config.task.roles, evaluation=config.evaluation)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return processor if model_config is not None else None


def machine_problems(config: Config) -> list[str]:
    """What this machine cannot do for a run: half precision without a GPU, folders that it may not write."""
    import torch

    from ftscale.data.cache import cache_folder

    problems = []
    if config.train.precision == "fp16" and not torch.cuda.is_available():
        problems.append("train.precision = fp16 needs a GPU, and there is none here; use bf16 or fp32.")
    problems += folder_problems("run_folder", Path(config.run_folder))
    problems += folder_problems("data.cache_dir", cache_folder(config.data))
    strategy, offload_dir = find_strategy(config.distributed.strategy), config.distributed.offload_dir
    if offload_dir and strategy is not None and strategy.on_disk:
        problems += folder_problems("distributed.offload_dir", Path(offload_dir))
    return problems


def folder_problems(setting: str, folder: Path) -> list[str]:
    """Why nothing can be written into a folder, which need not be there yet; it is tried in the nearest that is."""
    try:
        real = Path(os.path.realpath(folder))  # a link may lead into a disk that was cleared
        place = next(place for place in (real, *real.parents) if os.path.lexists(place))
        for name in real.relative_to(place).parts:
            if len(os.fsencode(name)) > os.pathconf(place, "PC_NAME_MAX"):
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place):
            return []
    except (OSError, ValueError) as error:  # ValueError: of characters that no name has
        why = error.strerror if isinstance(error, OSError) else str(error)
        return [
            f"{setting} = {str(folder)!r} cannot be written ({why}); change the permissions, or set "
            f"{setting} to another folder."
        ]


def metric_problems(config: Config, task: Task) -> list[str]:
    """`evaluation.metric` where the task has no such metric. `task`: with its labels."""
    name, known = config.evaluation.metric, task.metric_names()
    return [] if name is None or name in known else [unknown_name("evaluation.metric", name, known)]


def quick_problems(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Config | None, list[str]]:
    """What is wrong by the schema, by the table of combinations, and in files and columns; without importing torch.

    The configuration is None where the schema refuses it. Raises UserError where the file cannot be read as settings.
    """
    settings, source = read_settings(path, overrides), settings_source(path, overrides)
    try:
        config = parse_config(settings, source=source)
    except UserError as error:
        return None, [*error.problems, *_problems_of_valid_sources(settings)]
    if stages := stages_of(config):
        return config, by_stage({stage.name: _problems_without_torch(stage.config) for stage in stages})
    return config, _problems_without_torch(config)


def _problems_without_torch(config: Config) -> list[str]:
    data = source_problems(config.data, roles=config.task.roles, evaluation=config.evaluation)
    return [*check_combination(config), *data]


def _problems_of_valid_sources(settings: dict[str, Any]) -> list[str]:
    """Return the problems of the data section of settings that are wrong elsewhere."""
    task = settings.get("task")
    name = task.get("name") if isinstance(task, dict) else task
    if not isinstance(name, str) or name not in SETTINGS:
        return []
    if isinstance(task, dict) and task.get("problem") == "multi_label":  # may read a column a class
        return []
    try:
        return source_problems(DataConfig.model_validate(settings.get("data")), roles=SETTINGS[name].columns)
    except ValidationError:  # in the report already
        return []


def steps_problems(config: Config, *, num_steps: int | None) -> list[str]:
    """What is wrong with a schedule or an adapter for a run of so many optimizer steps; None = not known yet."""
    from ftscale.models.adapt import build_peft_config
    from ftscale.optim.schedules import check_schedule
    from ftscale.tasks import build_task

    steps = num_steps or config.train.max_steps or MANY_STEPS
    problems = _problems(partial(check_schedule, config.schedule, num_steps=steps))
    if config.adapter.method != "none":
        task_type = build_task(config.task).peft_type
        problems += _problems(partial(build_peft_config, config.adapter, task_type=task_type, num_steps=steps))
    return problems


def _problems(check: Callable[[], Any]) -> list[str]:
    """The sentences of the UserError that a call raises; none where it raises none."""
    try:
        check()
    except UserError as error:
        return list(error.problems)
    return []


def _section_problems(settings: dict[str, Any]) -> list[str]:
    """Unknown names in the sections that are right by themselves, of settings that are wrong elsewhere."""
    from ftscale.distributed.strategy import resolve_strategy
    from ftscale.models.adapt import build_peft_config
    from ftscale.optim.optimizers import check_optimizer
    from ftscale.optim.schedules import check_schedule

    checks: tuple[tuple[str, Any, Callable[[Any], Any]], ...] = (
        ("model", ModelConfig, _load_model_config_without_code),
        ("adapter", AdapterConfig, partial(build_peft_config, task_type=None, num_steps=MANY_STEPS)),
        ("optimizer", OptimizerConfig, check_optimizer),
        ("schedule", ScheduleConfig, partial(check_schedule, num_steps=MANY_STEPS)),
        ("distributed", DistributedConfig, resolve_strategy),
    )
    problems: list[str] = []
    for name, section_class, check in checks:
        written = settings.get(name)
        if written is None:
            continue
        try:
            section = section_class.model_validate({"name": written} if isinstance(written, str) else written)
        except ValidationError:  # in the report already
            continue
        if not (name == "adapter" and section.method == "none"):
            problems += _problems(partial(check, section))
    return problems


def _load_model_config_without_code(config: ModelConfig) -> None:
    """Settings that are wrong elsewhere may be of a command that runs no code."""
    from ftscale.models.load import load_model_config
    from ftscale.models.trust import NeedsCodeError, without_code

    try:
        load_model_config(without_code(config), settings={})
    except NeedsCodeError:
        if not config.trust_remote_code:
            raise


def _is_found(config: Config) -> bool:
    """Whether there is a model at all, whatever is wrong with its settings."""
    from ftscale.models.load import load_model_config

    plain = ModelConfig(
        name=config.model.name, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    return not _problems(partial(load_model_config, plain, settings={}))


def _frozen_problems(config: Config, task: Task, *, runs_code: bool) -> list[str]:
    """Frozen models beside the one that trains that are not there, and columns that nothing could keep."""
    from ftscale.models.load import load_model_config
    from ftscale.models.trust import NeedsCodeError, without_code
    from ftscale.tasks.base import frozen_models

    problems = []
    if config.data.streaming and (names := [column.name for column in task.computed()]):
        problems.append(
            f"data.streaming = true does not go with task = {config.task.name}, which computes {', '.join(names)} of "
            "prepared rows once; set data.streaming: false."
        )
    for companion in frozen_models(task):
        model = companion.model if runs_code else without_code(companion.model)
        try:
            load_model_config(model, settings={})
        except UserError as error:
            unread = isinstance(error, NeedsCodeError) and companion.model.trust_remote_code and not runs_code
            problems += [] if unread else [f"the task's {companion.name}: {problem}" for problem in error.problems]
    return problems


def _part_problems(config: Config, task: Task, model_config: Any) -> list[str]:
    """Modules and weights that the adapter or `trainable` names and the model does not have."""
    from ftscale.models.adapt import module_problems
    from ftscale.models.freeze import freeze
    from ftscale.models.without_weights import model_without_weights

    names_parts = config.adapter.model_extra or config.trainable != TrainableConfig()
    if not names_parts or config.head.hidden_sizes:  # such a head has parts of its own: told when the model is built
        return []
    trust = config.model.trust_remote_code
    model = model_without_weights(model_config, auto_class=task.auto_class, trust_remote_code=trust)
    if model is None:
        return []
    if config.adapter.method == "none":
        return _problems(partial(freeze, model, config.trainable))
    return module_problems(model, config.adapter)


def _processor_at_hand(config: ModelConfig, modality: Modality) -> Any:
    """The processor that the configuration names or the model came with; None where the rows are yet to tell it."""
    if config.processor or not modality.learns:
        return modality.load_processor(config)
    try:
        own = modality.load_processor(config)
    except UserError:  # none of its own, or none that this modality can read
        return None
    return own if modality.is_learned(own) else None


def fit_problems(config: Config, model_config: Any, processor: Any) -> list[str]:
    """What settings ask of model and processor that these cannot do together."""
    from ftscale.methods import build_method

    try:
        task = build_method(config.method, config.task, processor)
    except UserError as error:
        return list(error.problems)
    return task.fit_problems(config, model_config)


def _strategy_problems(config: Config) -> list[str]:
    from ftscale.base.launched import check_launch
    from ftscale.distributed.strategy import resolve_strategy

    if problems := _problems(check_launch):
        return [*problems, *check_combination(config)]
    try:
        strategy = resolve_strategy(config.distributed)
    except UserError as error:
        return [*error.problems, *check_combination(config)]
    return check_combination(config, strategy=strategy)


def _optimizer_problems(config: OptimizerConfig) -> list[str]:
    from ftscale.optim.optimizers import check_optimizer

    return _problems(partial(check_optimizer, config))


def _report_problems(report: ReportConfig) -> list[str]:
    """Trackers that are not known or not installed, and options that are not theirs."""
    unused = [
        f"report.options has {name!r}, which report.to does not name; add it there, or take it out."
        for name in report.options
        if name not in report.to
    ]
    if not report.to:
        return unused
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = {kind.value for kind in LoggerType} - {"all"}
    installed = {LoggerType(kind).value for kind in get_available_trackers()}
    missing = [
        unknown_name("report.to", name, known)
        if name not in known
        else f"report.to = {name} is not installed; pip install {name}, or leave it out."
        for name in report.to
        if name not in installed
    ]
    return [*missing, *unused] or [
        unknown_name(f"report.options.{name}", option, taken)
        for name, options in report.options.items()
        if options and (taken := option_names(name)) is not None
        for option in options
        if option not in taken
    ]


def source_problems(
    data: DataConfig, *, roles: Sequence[Sequence[str]], evaluation: EvaluationConfig | None = None
) -> list[str]:
    """Files that are not there, lack columns of the task, or have no row; imports nothing heavy.

    `evaluation`: which columns held-out and test rows have besides; None = the configuration does not say yet.
    """
    from ftscale.data.formats.select import role_problems
    from ftscale.data.sources import read_rows

    groups = () if evaluation is None else evaluation.groups

    def first_row(part: str, index: int) -> None:
        source, setting = getattr(data, part)[index], f"data.{part}[{index}]"
        also = [*groups, *([data.stratify] if data.stratify else [])]
        problems = role_problems(source, roles=roles, setting=setting, also=also)
        if part != "train" and source.weight != 1:
            problems.append(
                f"{setting}.weight = {source.weight:g} is not used: each row is scored once; leave it out, or set "
                "data.train[0].weight."
            )
        if problems:
            raise UserError(*problems)
        is_scored = evaluation is not None and (part != "train" or (data.eval_ratio > 0 and not data.eval))
        read = evaluation.with_groups(roles) if evaluation is not None and is_scored else roles
        next(read_rows(source, roles=read, setting=setting))

    return [
        problem
        for part in ("train", "eval", "test")
        for index in range(len(getattr(data, part)))
        for problem in _problems(partial(first_row, part, index))
    ]
