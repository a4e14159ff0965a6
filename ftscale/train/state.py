"""What a run knows of itself between steps, and keeps in each checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from ftscale.data.stream import StreamPosition, StreamSteps
from ftscale.models.gradient_rule import GradientRule

if TYPE_CHECKING:
    from ftscale.optim.schedules import Schedules


@dataclass
class Progress:
    """What the loop knows of itself between steps; stored in each checkpoint."""

    step: int = 0
    """Global batches gone through; the position in the data order follows from it."""
    tokens: int = 0
    """Tokens trained on, over all ranks."""
    targets: int = 0
    """Targets trained on, over all ranks."""
    best_step: int | None = None
    best_metric: float | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    bad_evaluations: int = 0
    """Evaluations since the best one."""
    metric_moved: bool = False
    """The metric that chooses had two values or more so far."""
    evaluated: int = -1
    """The step of the last evaluation; -1 = none yet."""
    losses: list[float] = field(default_factory=list)
    """Of the last good steps, as many as the guard looks at."""
    bad_in_row: int = 0
    """Global batches that the guard has just left out, one after another."""
    elapsed_s: float = 0.0
    """Time spent training, over all starts of the run."""


class RunState:
    """Everything that a run goes on from, besides weights and optimizer; the same on all ranks.

    The strategy stores weights and optimizer (`Distributed.save_state`), for it alone knows how they are cut, and each
    rank the state of its random generators (train/random_file.py). `stream`: None = training rows are prepared, and
    the place among them follows from the step.
    """

    def __init__(self, schedules: Schedules, rule: GradientRule, *, stream: StreamSteps | None) -> None:
        self.progress = Progress()
        self.schedules = schedules
        self.schedule = schedules.build()
        self.rule = rule
        self.stream = stream

    def advance_schedule(self, loss: float) -> None:
        """The learning rate of the next step. `loss`: of the step that is over; two schedules go by it."""
        from ftscale.optim.schedules import advance_schedule  # with what it imports, five seconds

        advance_schedule(self.schedule, loss=loss)

    def state_dict(self) -> dict[str, Any]:
        """All but the tensors, JSON-able: what a checkpoint's manifest calls progress."""
        return {
            "loop": asdict(self.progress),
            "schedule": self.schedule.state_dict(),
            "stream": vars(self.stream.position) if self.stream else None,
        }

    def begin_schedule(self, state: dict[str, Any], *, anew: bool) -> None:
        """Have the schedule that a checkpoint's state belongs to, before the optimizer is loaded.

        It began where the run was given another length or rate, or with the run. `anew`: it is given that here.
        """
        step = state["loop"]["step"]
        before = step if anew else step - state["schedule"].get("last_epoch", step)
        if before:
            self.schedule = self.schedules.build(after=before)

    def load_state_dict(self, state: dict[str, Any], *, anew: bool = False) -> None:
        """Go on from what `state_dict` gave, where `misfit` finds nothing wrong with it; the optimizer is loaded.

        `anew`: with a schedule that begins here.
        """
        self.progress = Progress(**state["loop"])
        if not anew:
            self.schedule.load_state_dict(state["schedule"])
        else:  # the optimizer has come with the rates that it had
            for group, rate in zip(self.schedule.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
                group["lr"] = rate
        if self.stream is not None:
            self.stream.position = StreamPosition(**state["stream"])

    def tensors(self) -> dict[str, Any] | None:
        """The tensors: what the gradient rule has learned, e.g. AdaLoRA of each weight; None = there are none."""
        return self.rule.state_dict()

    def load_tensors(self, tensors: dict[str, Any] | None) -> None:
        """Go on from what `tensors` gave."""
        self.rule.load_state_dict(tensors)

    def misfit(self, state: dict[str, Any]) -> str:
        """Why what a checkpoint stored is not what this run stores; "" = it is. Another version may have written it."""
        ours = self.state_dict()
        kinds = {"loop": Progress, **({} if self.stream is None else {"stream": StreamPosition})}
        if state.keys() != ours.keys() or {**ours["schedule"]}.keys() != {**state["schedule"]}.keys():
            return "another version of ftscale wrote it"
        try:
            for name, kind in kinds.items():
                TypeAdapter(kind).validate_json(json.dumps(state[name]), strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            return f"its progress is not that of a run: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        return ""
