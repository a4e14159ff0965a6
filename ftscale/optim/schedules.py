"""The learning rate over optimizer steps: transformers' schedules, and an exponential one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from transformers import SchedulerType, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

from ftscale.base.errors import UserError, unknown_name
from ftscale.config.schema import ScheduleConfig

NAMES = (*(kind.value for kind in SchedulerType), "exponential")
WITHOUT_WARMUP = {"constant", "reduce_lr_on_plateau", "greedy"}
OF_THE_RUN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, *, num_steps: int) -> LRScheduler | GreedyLR:
    """The schedule by name over `num_steps` optimizer steps; step it once per optimizer step (`advance_schedule`).

    Warm-up is `warmup_steps`, or else `warmup_ratio` of all steps, rounded up. Raises UserError for an unknown name,
    an option that the schedule does not have or needs and did not get, and a warm-up that it cannot have.
    """
    num_warmup_steps = check_schedule(config, num_steps=num_steps)
    try:
        if config.name == "exponential":
            return exponential(optimizer, num_warmup_steps=num_warmup_steps, **config.options)
        return get_scheduler(
            config.name,
            optimizer,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=num_steps,
            scheduler_specific_kwargs=dict(config.options),
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"schedule.options = {config.options} is refused by {config.name}: {error}") from error


class Schedules:
    """The schedules of one optimizer: the one of the whole run, and those that begin where the run was given others."""

    def __init__(self, optimizer: Optimizer, config: ScheduleConfig, *, num_steps: int) -> None:
        self._optimizer = optimizer
        self._config = config
        self._num_steps = num_steps
        self._peaks = [group["lr"] for group in optimizer.param_groups]

    def build(self, *, after: int = 0) -> LRScheduler | GreedyLR:
        """The schedule over the optimizer steps that come after the first `after`; see build_schedule.

        Where fewer are left than it warms up for, it warms up to the end.
        """
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak
            group.pop("initial_lr", None)
        left = max(self._num_steps - after, 1)
        config = self._config
        if after:
            config = config.model_copy(update={"warmup_steps": min(config.warmup_steps, left)})
        return build_schedule(self._optimizer, config, num_steps=left)


def advance_schedule(schedule: LRScheduler | GreedyLR, *, loss: float) -> None:
    """One optimizer step further. `loss`: of the step, the mean over its targets; two schedules go by it."""
    if isinstance(schedule, ReduceLROnPlateau | GreedyLR):
        schedule.step(loss)
    else:
        schedule.step()


def exponential(optimizer: Optimizer, *, num_warmup_steps: int, gamma: float) -> LambdaLR:
    """Linear warm-up to the peak, then `gamma` times the rate before at each step."""

    def factor(step: int) -> float:
        return step / num_warmup_steps if step < num_warmup_steps else gamma ** (step - num_warmup_steps)

    return LambdaLR(optimizer, factor)


def check_schedule(config: ScheduleConfig, *, num_steps: int) -> int:
    """The number of warm-up steps. Raises UserError with all that is wrong with the section; builds nothing."""
    if config.name not in NAMES:
        raise UserError(unknown_name("schedule.name", config.name, NAMES))
    num_warmup_steps = config.warmup_steps or math.ceil(config.warmup_ratio * num_steps)
    problems = _option_problems(config)
    if num_warmup_steps and config.name in WITHOUT_WARMUP:
        problems.append(
            f"schedule.name = {config.name} has no warm-up; use constant_with_warmup, or set schedule.warmup_steps and "
            "schedule.warmup_ratio to 0."
        )
    if num_warmup_steps > num_steps:
        problems.append(
            f"schedule.warmup_steps = {num_warmup_steps} must be at most {num_steps}, the optimizer steps of the run; "
            "lower it, or train longer."
        )
    if problems:
        raise UserError(*problems)
    return num_warmup_steps


def _option_problems(config: ScheduleConfig) -> list[str]:
    parameters = _options_of(config.name)
    problems = [
        unknown_name(f"schedule.options ({config.name})", name, parameters)
        if parameters
        else f"schedule.options = {config.options} is not empty, and {config.name} has no options; leave it out."
        for name in config.options
        if name not in parameters
    ]
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in config.options
    ]
    if missing:
        problems.append(f"schedule.options = {config.options} needs {', '.join(missing)} for {config.name}; add it.")
    return problems


def _options_of(name: str) -> dict[str, inspect.Parameter]:
    functions: dict[str, Callable[..., Any]] = {
        "exponential": exponential,
        "reduce_lr_on_plateau": ReduceLROnPlateau,  # transformers' functions for these two pass everything on
        "greedy": GreedyLR,
    }
    function = functions.get(name) or TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]
    return {
        option: parameter
        for option, parameter in inspect.signature(function).parameters.items()
        if option not in OF_THE_RUN
    }
