"""How each tracker begins a run, goes on with it and ends it, by Accelerate's class of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

DEFAULT_PROJECT = "ftscale"
PREEMPTED, FAILED = "preempted", "failed"
"""Of the statuses with which a run may end, those that are no success."""
MARK = "ftscale.run"
"""The tag by which an mlflow run is found again."""

_NO_METRIC = re.compile(r"[^\w\-. /]")
_PARAM_CHARACTERS = 250
"""Of a value; mlflow 3 takes 6000, the oldest servers 250."""


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told of a run at its start."""

    folder: Path
    """Where those write that keep files of their own; it is there."""
    identity: str
    """16 hexadecimal digits, the same at each start of a run."""
    project: str | None
    """None = what a tracker's own variable says, else ftscale."""
    name: str
    group: str | None
    tags: tuple[str, ...]
    config: dict[str, str | int | float | bool | None]
    """Every setting, flat, without secrets."""
    step: int
    """The step of the checkpoint that it goes on from; 0 = it begins."""


class Tracker:
    """A tracker of Accelerate of which no more is known than that it takes figures: each start is a run of its own."""

    reserved: tuple[str, ...] = ()
    """Arguments of its start that are ftscale's, and no options."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self.options = name, dict(options)

    def begin(self, run: TrackedRun) -> None:
        """Begin the run, or go on with it; whatever the library says of it goes to stderr."""
        with redirect_stdout(sys.stderr):
            self._start((_project(run),), {})
            self.tracker.store_init_configuration(run.config)

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Report figures of an optimizer step."""
        self.tracker.log(values, step=step)

    def end(self, status: str) -> None:
        """Say how the run ended."""
        with redirect_stdout(sys.stderr):
            self._finish(status)

    def _finish(self, status: str) -> None:
        self.tracker.finish()

    def _start(self, arguments: tuple[Any, ...], own: dict[str, Any]) -> None:
        self.tracker = tracker_class(self.name)(*arguments, **{**own, **self.options})
        # each of its methods would ask Accelerate whether this is rank 0, which it is, and which Accelerate has
        # forgotten where the run ended before the tracker did
        self.tracker.main_process_only = False
        self.tracker.start()


class TensorBoard(Tracker):
    """Event files in the run folder, of which a resumed run takes back what came after its checkpoint."""

    reserved = ("log_dir",)

    def begin(self, run: TrackedRun) -> None:
        """Begin another event file in the folder of the run's."""
        self._start((run.folder.name, run.folder.parent), {"purge_step": run.step + 1 if run.step else 0})
        # Accelerate's hyperparameters would be another run each start, in a folder named by the clock
        lines = "\n".join(f"    {name}: {value}" for name, value in run.config.items())
        self.tracker.tracker.add_text("config", lines, global_step=run.step)


class Wandb(Tracker):
    """Weights & Biases. A run's id there is made of its own, so that each start goes on with the same one."""

    reserved = ("project", "id", "resume", "config")

    def begin(self, run: TrackedRun) -> None:
        """Begin the run, or go on with the one of the same id."""
        own: dict[str, Any] = {"id": run.identity, "resume": "allow", "name": run.name}
        own |= {"group": run.group} if run.group else {}
        own |= {"tags": list(run.tags)} if run.tags else {}
        own |= {} if "WANDB_DIR" in os.environ else {"dir": str(run.folder)}
        self._start((_project(run, "WANDB_PROJECT"),), own)
        # a resumed run repeats steps after its checkpoint, and wandb's own counter of steps never goes back
        self.tracker.run.define_metric("step")
        self.tracker.run.define_metric("*", step_metric="step")
        self.tracker.store_init_configuration(run.config)

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Report figures with the step as one of them."""
        self.tracker.log({**values, "step": step})

    def end(self, status: str) -> None:
        """Say how the run ended; wandb writes to stderr by itself, and keeps what stdout is."""
        if status == PREEMPTED:
            self.tracker.run.mark_preempting()
        self.tracker.run.finish(exit_code=1 if status in (PREEMPTED, FAILED) else 0)


class Mlflow(Tracker):
    """MLflow, on its server or in files. A run is found again by a tag, since the server chooses its id."""

    reserved = ("experiment_name", "run_name", "run_id", "logging_dir", "nested_run")

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__(name, options)
        place = self.options.pop("tracking_uri", None)
        if place is None and "MLFLOW_TRACKING_URI" not in os.environ and find_spec("sqlalchemy") is None:
            place = "mlruns"  # its own default is SQLite, which mlflow-skinny comes without
        if place is not None:
            # in the environment, which is put back when the run has ended, and not in mlflow for good
            os.environ["MLFLOW_TRACKING_URI"] = str(place)
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

    def begin(self, run: TrackedRun) -> None:
        """Begin the run, or go on with the one of the same tag, whose parameters stay as they are."""
        import mlflow

        with redirect_stdout(sys.stderr):
            project = _project(run, "MLFLOW_EXPERIMENT_NAME")
            found = self._find(project, run)
            self._start((project,), {"run_id": found} if found else {"run_name": run.name})
            tags = {MARK: run.identity} | ({"group": run.group} if run.group else {})
            mlflow.set_tags(tags | dict.fromkeys(run.tags, "true"))
            if not found:
                self.tracker.store_init_configuration(
                    {name: str(value)[:_PARAM_CHARACTERS] for name, value in run.config.items()}
                )

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Report figures; a class's name may have characters that no metric of mlflow has."""
        self.tracker.log({_NO_METRIC.sub("_", name): value for name, value in values.items()}, step=step)

    def _finish(self, status: str) -> None:
        import mlflow

        mlflow.end_run({PREEMPTED: "KILLED", FAILED: "FAILED"}.get(status, "FINISHED"))

    def _find(self, project: str, run: TrackedRun) -> str | None:
        """The id of the run that an earlier start began; None = there was none."""
        from mlflow import MlflowClient

        client = MlflowClient()
        experiment = client.get_experiment_by_name(project)
        if experiment is None:
            return None
        # the tag of the folder's run alone: nobody else's id is taken from a file
        found = client.search_runs([experiment.experiment_id], f"tags.`{MARK}` = '{run.identity}'", max_results=1)
        return found[0].info.run_id if found else None


class Trackio(Tracker):
    """trackio. It finds a run by its name, which ends with the first digits of the run's identity for that."""

    reserved = ("project", "name", "resume", "config")

    def begin(self, run: TrackedRun) -> None:
        """Begin the run, or go on with the one of the same name."""
        own = {"name": f"{run.name}-{run.identity[:6]}", "resume": "allow", "group": run.group}
        with redirect_stdout(sys.stderr):
            self._start((_project(run, "TRACKIO_PROJECT"),), own)
            self.tracker.store_init_configuration(run.config)


KINDS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
"""The trackers of which more is known; whatever else Accelerate has is a plain `Tracker`."""


def build_tracker(name: str, options: Mapping[str, Any]) -> Tracker:
    """Return a tracker that has not begun."""
    return KINDS.get(name, Tracker)(name, options)


def tracker_class(name: str) -> Any:
    """Return Accelerate's class of a tracker."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return LOGGER_TYPE_TO_CLASS[name]


def option_names(name: str) -> set[str] | None:
    """Return the arguments that may stand in a tracker's options; None where it does not say which it takes.

    Imports the tracker's library.
    """
    start = _starts().get(name)
    if start is None:
        return None
    more = {"tracking_uri"} if name == "mlflow" else set()
    return (set(signature(start()).parameters) | more) - {*KINDS[name].reserved, "self"}


def _starts() -> dict[str, Callable[[], Callable[..., Any]]]:
    """Return what gives each library's own start."""

    def tensorboard() -> Callable[..., Any]:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter

    def wandb() -> Callable[..., Any]:
        import wandb

        return wandb.init

    def trackio() -> Callable[..., Any]:
        import trackio

        return trackio.init

    return {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": lambda: tracker_class("mlflow")}


def _project(run: TrackedRun, variable: str = "") -> str:
    return run.project or os.environ.get(variable) or DEFAULT_PROJECT
