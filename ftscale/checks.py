"""What can be known to be wrong before any row is prepared: every problem of a configuration in one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftscale.config import Config, parse_config
from ftscale.config.compatibility import check_combination
from ftscale.config.load import read_settings, settings_source
from ftscale.config.schema import AdapterConfig, DistributedConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from ftscale.errors import UserError, unknown_name

PEFT_TASK_TYPES = {
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
}
"""What peft calls the tasks of transformers' Auto classes, where it has a name for them."""

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


def check_config(config: Config) -> None:
    """Raise UserError with all that is wrong with names, combinations, the model's config and the data's columns.

    Of each source the first row is read; no weights are loaded, and nothing is written.
    """
    from ftscale.tasks import build_task

    task = build_task(config.task)
    checks: tuple[Callable[[], Any], ...] = (
        lambda: _check_strategy_and_combination(config),
        lambda: _check_optimizer(config.optimizer),
        lambda: check_steps(config, num_steps=None),
        lambda: _check_trackers(config.train.trackers),
        lambda: _check_model(config.model, processor_class=task.processor_class),
        lambda: _check_sources(config, roles=task.columns),
    )
    _raise_all(checks)


def check_steps(config: Config, *, num_steps: int | None) -> None:
    """Raise UserError for a schedule or an adapter that does not fit the number of optimizer steps; None = unknown."""
    from ftscale.models.adapt import build_peft_config
    from ftscale.optim.schedules import check_schedule
    from ftscale.tasks import build_task

    steps = num_steps or config.train.max_steps or max(MANY_STEPS, config.schedule.warmup_steps)
    task_type = PEFT_TASK_TYPES.get(build_task(config.task).auto_class)
    checks: list[Callable[[], Any]] = [lambda: check_schedule(config.schedule, num_steps=steps)]
    if config.adapter.method != "none":
        checks.append(lambda: build_peft_config(config.adapter, task_type=task_type, num_steps=steps))
    _raise_all(checks)


def problems_in(check: Callable[[], Any]) -> list[str]:
    """The sentences of the UserError that a call raises; none where it raises none."""
    try:
        check()
    except UserError as error:
        return list(error.problems)
    return []


def _raise_all(checks: Sequence[Callable[[], Any]]) -> None:
    problems = dict.fromkeys(problem for check in checks for problem in problems_in(check))  # each sentence once
    if problems:
        raise UserError(*problems)


def _section_problems(settings: dict[str, Any]) -> list[str]:
    """Unknown names in the sections that are right by themselves, of settings that are wrong elsewhere."""
    from ftscale.distributed import resolve_strategy
    from ftscale.models.adapt import build_peft_config
    from ftscale.models.load import load_model_config
    from ftscale.optim.schedules import check_schedule

    def check_adapter(section: AdapterConfig) -> None:
        if section.method != "none":
            build_peft_config(section, task_type=None, num_steps=MANY_STEPS)

    checks: tuple[tuple[str, Any, Callable[[Any], Any]], ...] = (
        ("model", ModelConfig, lambda section: load_model_config(section, settings={})),
        ("adapter", AdapterConfig, check_adapter),
        ("optimizer", OptimizerConfig, _check_optimizer),
        ("schedule", ScheduleConfig, lambda section: check_schedule(section, num_steps=MANY_STEPS)),
        ("distributed", DistributedConfig, resolve_strategy),
    )
    problems: list[str] = []
    for name, section_class, check in checks:
        written = settings.get(name, {})
        try:
            section = section_class.model_validate({"name": written} if isinstance(written, str) else written)
        except ValidationError:  # is in the report already
            continue
        problems += problems_in(lambda check=check, section=section: check(section))  # type: ignore[misc]
    return problems


def _check_optimizer(config: OptimizerConfig) -> None:
    from ftscale.optim.optimizers import check_optimizer

    check_optimizer(config)


def _check_strategy_and_combination(config: Config) -> None:
    from ftscale.distributed import resolve_strategy

    strategy = resolve_strategy(config.distributed)
    if problems := check_combination(config, strategy=strategy):
        raise UserError(*problems)


def _check_trackers(names: Sequence[str]) -> None:
    if not names:
        return
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = [kind.value for kind in LoggerType if kind.value != "all"]
    problems = [unknown_name("train.trackers", name, known) for name in names if name not in known]
    installed = {str(getattr(kind, "value", kind)) for kind in get_available_trackers()}
    problems += [
        f"train.trackers = {name} is not installed; pip install {name}, or leave it out."
        for name in names
        if name in known and name not in installed
    ]
    if problems:
        raise UserError(*problems)


def _check_model(config: ModelConfig, *, processor_class: Any) -> None:
    from ftscale.models.load import load_model_config, load_processor

    problems = problems_in(lambda: load_model_config(config, settings={}))
    if not problems or config.processor:  # else it would say once more that the model is not there
        problems += problems_in(lambda: load_processor(config, kind=processor_class))
    if problems:
        raise UserError(*problems)


def _check_sources(config: Config, *, roles: Sequence[Sequence[str]]) -> None:
    """Files that are there, with columns for the task and a first row."""
    from ftscale.data.sources import read_rows

    data = config.data
    problems = [
        problem
        for part, sources in (("train", data.train), ("eval", data.eval), ("test", data.test))
        for index, source in enumerate(sources)
        for problem in problems_in(
            lambda source=source, setting=f"data.{part}[{index}]": next(  # type: ignore[misc]
                read_rows(source, roles=roles, setting=setting)
            )
        )
    ]
    if problems:
        raise UserError(*problems)
