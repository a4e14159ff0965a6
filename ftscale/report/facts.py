"""What a run folder says of its run, read for a report. What is not there, or damaged, is left out.

Of a run of several stages the curves are one behind the other, and rows and data those of the last stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.base.sealed import DamagedError, read_json, read_lines
from ftscale.config import Config, load_config
from ftscale.config.load import public
from ftscale.config.own_task import reading_of_strangers
from ftscale.config.stages import stage_folders
from ftscale.train.row_records import ROWS

DATA_REPORT, REPORT = "data_report.json", "report.html"

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells of it."""

    folder: Path
    """Of the last stage, where it is a run of several."""
    name: str
    """What it is called beside others."""
    config: Config | None
    """None where it cannot be read."""
    about: dict[str, Any]
    """run.json: versions, machine, command."""
    result: dict[str, Any]
    """result.json; empty while the run is going on."""
    data: dict[str, Any]
    """data_report.json."""
    lines: list[Line] = field(default_factory=list)
    """metrics.jsonl."""
    history: list[Line] = field(default_factory=list)
    """history.jsonl: settings that a resume changed."""

    @cached_property
    def steps(self) -> list[Line]:
        """The optimizer steps."""
        return [line for line in self.lines if line["kind"] == "train"]

    @cached_property
    def evaluations(self) -> list[Line]:
        """Scores of the evaluation rows, by step."""
        scored = (line for line in self.lines if line["kind"] == "eval")
        return [line for line in scored if not any(name.startswith("test/") for name in line)]

    @cached_property
    def events(self) -> list[Line]:
        """What happened besides."""
        return [line for line in self.lines if line["kind"] == "event"]

    @property
    def metric(self) -> str:
        """The metric that chose the best checkpoint; "loss" where none was."""
        best = self.result.get("best") or {}
        return str(best.get("metric", "loss"))

    @property
    def best_step(self) -> int | None:
        """The step whose weights were kept as the best."""
        best = self.result.get("best") or {}
        return best.get("step")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting by its whole name, e.g. `optimizer.lr`."""
        return {} if self.config is None else flat(self.config.model_dump(mode="json"))

    @cached_property
    def changed(self) -> dict[str, Any]:
        """The settings that are not the default."""
        return {} if self.config is None else flat(self.config.model_dump(mode="json", exclude_defaults=True))

    def records(self, part: str = "eval") -> Any:
        """What was noted of the rows of a part, as an Arrow table: of the best evaluation, else the last; None = none.

        `part`: eval or test.
        """
        import pyarrow.parquet as pq
        from pyarrow.lib import ArrowException

        path = self.folder / ROWS / "test.parquet" if part == "test" else self._evaluated()
        try:
            return None if path is None else pq.read_table(path)
        except (OSError, ArrowException):
            return None

    def _evaluated(self) -> Path | None:
        paths = sorted((self.folder / ROWS).glob("eval-*.parquet"))
        best = f"eval-{self.best_step:08d}.parquet" if self.best_step is not None else ""
        return next((path for path in paths if path.name == best), paths[-1] if paths else None)


def read_run(folder: Path, *, name: str = "") -> Run:
    """What the folder tells. Raises UserError where no run has begun there."""
    stages = [read_run(stage) for stage in stage_folders(folder)]
    lines = _one_after_another(stages) or _lines(folder)
    about = _json(folder / "run.json")
    if not lines and not about:
        raise UserError(f"{folder} holds no run; name the run_folder of one.")
    return Run(
        folder=stages[-1].folder if stages else folder,
        name=name or folder.resolve().name,
        config=_config(folder),
        about=about,
        result=_json(folder / "result.json"),
        data=stages[-1].data if stages else _json(folder / DATA_REPORT),
        lines=lines,
        history=read_lines(folder / "history.jsonl")[0],
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their whole names; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def number(value: Any) -> float | None:
    """A finite figure; None for what is none, as metrics.jsonl writes it."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0
    return float(value) if good else None


def _lines(folder: Path) -> list[Line]:
    lines, _ = read_lines(folder / "metrics.jsonl")
    return [line for line in lines if isinstance(line.get("kind"), str) and type(line.get("step")) is int]


def _one_after_another(stages: list[Run]) -> list[Line]:
    """The lines of all stages, each stage's steps behind those of the one before; each begins with an event."""
    lines: list[Line] = []
    before = 0
    for stage in stages:
        lines.append({"kind": "event", "event": f"stage {stage.name}", "step": before})
        lines += [{**line, "step": line["step"] + before} for line in stage.lines]
        before += max((line["step"] for line in stage.steps), default=0)
    return lines


def _config(folder: Path) -> Config | None:
    try:
        with reading_of_strangers():
            return public(load_config(folder / "config.yaml"))
    except UserError:
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (FileNotFoundError, DamagedError):
        return {}
    return found if isinstance(found, dict) else {}
