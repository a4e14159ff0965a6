"""Whether a run fits this machine, and what makes it fit: by `ftscale plan`, or by the number of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config import Config
from ftscale.config.schema import EvaluationConfig
from ftscale.config.strategies import STRATEGIES
from ftscale.data.sample import Sample
from ftscale.init.device import Machine
from ftscale.init.models import ACTIVATIONS_GIB, Known
from ftscale.plan import Choice, Plan

GIB = 2**30
SOME_ROWS = 500
"""Of each source, whose lengths are measured."""
NF4_SHARE = 0.3
"""What nf4 and its scales take of bf16."""
LORA = {
    "adapter.method": ("lora", "trains small matrices beside the frozen weights"),
    "adapter.r": (16, "enough for a few thousand rows"),
    "adapter.lora_alpha": (32, "twice r, as is usual"),
    "adapter.target_modules": ("all-linear", "all linear layers but the head"),
}
NF4 = {"model.quantization": ("nf4", "frozen weights in 4 bits, as QLoRA has them")}


@dataclass(frozen=True)
class Fit:
    """What a forecast says."""

    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """What makes the run fit, with the reason."""
    why: str = ""
    """The numbers, in words."""
    problems: tuple[str, ...] = ()
    """What `ftscale check` would refuse."""
    millions: float | None = None
    """Parameters of the model; None = not known."""
    steps: int | None = None
    seconds: float | None = None
    """Of the whole run, not calibrated."""

    @property
    def adapts(self) -> bool:
        """Whether the base model is frozen."""
        return "adapter.method" in self.settings


def fit_by_plan(config: Config, machine: Machine) -> Fit:
    """Ask `ftscale plan`: all weights where they fit, else LoRA, else LoRA over nf4."""
    from ftscale.plan import plan_run

    try:
        plan = plan_run(config, gpu=machine.gpu, gpus_per_node=machine.count, compare=False)
        if not plan.fits and not plan.largest_micro_size:
            plan = plan_run(config, gpu=machine.gpu, gpus_per_node=machine.count)
    except UserError as error:
        return Fit(problems=error.problems)
    settings: dict[str, tuple[Any, str]] = {}
    total, steps, seconds = plan.memory.total, plan.num_steps, plan.time.total_s
    choice: Choice | None = None
    if not plan.fits and not plan.largest_micro_size:
        choice = _chosen(plan)
        if choice is None:
            why = f"nothing fits: it takes {_gib(total)} of {_gib(plan.device.memory)} by ftscale plan"
            return Fit(why=why, problems=(f"{why}; take a smaller model, or other devices.",))
        settings, total, seconds = _settings(choice, plan), choice.memory.total, choice.time.total_s
    if not plan.fits and plan.largest_micro_size:
        said = f"longest samples that fit at once by ftscale plan; {_gib(total)} would be taken without"
        settings["batch.micro_size"] = (plan.largest_micro_size, said)
    why = f"{_gib(total)} of {_gib(plan.device.memory)} of {machine.about} by ftscale plan"
    return Fit(settings, why, millions=plan.step.sizes.elements / 1e6, steps=steps, seconds=seconds)


def measured(config: Config) -> list[Sample]:
    """Prepare some training rows as a run would, as long as the model takes them. Raises UserError as `check` does."""
    from ftscale.checks.sample import read_sample
    from ftscale.precheck import check_config

    few = SOME_ROWS if "label" not in config.task.label_columns else 0  # of few rows some classes may be missing
    sources = tuple(source.model_copy(update={"limit": few}) for source in config.data.train)
    data = {"train": sources, "eval": (), "test": (), "eval_ratio": 0.0, "stratify": None}
    whole: dict[str, Any] = {"max_length": None, "max_target_length": None, "too_long": "truncate"}
    lengths = {name: value for name, value in whole.items() if name in type(config.task).model_fields}
    bare = config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "task": config.task.model_copy(update=lengths),
            "evaluation": EvaluationConfig(),
        }
    )
    return read_sample(bare, check_config(bare, runs_code=False), full=False).train.samples


def fit_by_size(known: Known, machine: Machine, *, may_adapt: bool) -> Fit:
    """Guess from the number of parameters. `may_adapt`: whether the task is one for adapters."""
    room = machine.device.memory_gib
    counted = f"by its {known.millions:.0f} M parameters, since its files could not be read for ftscale plan"
    if not may_adapt or known.trained_gib + ACTIVATIONS_GIB <= room:
        why = f"about {known.trained_gib:.1f} of {room:.1f} GiB beside activations, {counted}"
        return Fit({}, why, millions=known.millions)
    settings: dict[str, tuple[Any, str]] = dict(LORA)
    taken = known.frozen_gib
    if machine.gpu and taken + ACTIVATIONS_GIB > room:
        settings |= NF4
        taken *= NF4_SHARE
    why = f"all weights would take about {known.trained_gib:.0f} GiB, this {taken:.1f} of {room:.1f}, {counted}"
    return Fit(settings, why, millions=known.millions)


def _chosen(plan: Plan) -> Choice | None:
    """The recommended choice; on one device one that needs no launcher, where there is any."""
    plain = [choice for choice in plan.choices if not STRATEGIES[choice.strategy].is_zero]
    return next(iter(plain or plan.choices), None)


def _settings(choice: Choice, plan: Plan) -> dict[str, tuple[Any, str]]:
    taken = f"all weights would take {_gib(plan.memory.total)}"
    settings: dict[str, tuple[Any, str]] = {}
    if choice.weights in ("lora", "nf4 + lora"):
        settings |= LORA
        settings["adapter.method"] = ("lora", taken)
    if choice.weights == "nf4 + lora":
        settings |= NF4
    if choice.checkpointing:
        why = taken if choice.weights == "as configured" else "recomputes activations, which do not fit otherwise"
        settings["train.activation_checkpointing"] = (True, why)
    if STRATEGIES[choice.strategy].is_zero:
        settings["distributed.strategy"] = (choice.strategy, f"{taken} a device")
    return settings


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
