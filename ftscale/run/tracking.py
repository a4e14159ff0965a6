"""What a run tells its trackers when it starts: its name there, its identity, its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftscale.config import Config
from ftscale.config.load import public
from ftscale.config.schema import ReportConfig
from ftscale.config.stages import STAGES
from ftscale.train.tracker_kinds import TrackedRun, build_tracker
from ftscale.train.trackers import Trackers

FOLDER = "trackers"
"""In the run folder, the files of trackers that keep some."""


def open_trackers(trackers: Trackers, config: Config, *, run_id: str, about: dict[str, Any], step: int) -> None:
    """Begin the run with each tracker of the configuration, or go on with it; for rank 0.

    `run_id`: of the run folder; a file that others may have written, so that trackers get a hash of it. `about`: what
    they are told besides the settings. `step`: that the run goes on from.
    """
    report, folder = config.report, Path(config.run_folder)
    if not report.to:
        return
    (folder / FOLDER).mkdir(exist_ok=True)
    name, group = named(report, folder)
    run = TrackedRun(
        folder / FOLDER,
        hashlib.sha256(run_id.encode()).hexdigest()[:16],
        report.project,
        name,
        group,
        report.tags,
        {**flat(config), **about},
        step,
    )
    trackers.open([build_tracker(kind, report.options.get(kind, {})) for kind in dict.fromkeys(report.to)], run)


def named(report: ReportConfig, folder: Path) -> tuple[str, str | None]:
    """Return the run's name and its group, None = none: the stages of a run are runs of one group."""
    if folder.parent.name != STAGES:
        return report.name or folder.name, report.group
    whole = report.name or folder.parent.parent.name
    return f"{whole}-{folder.name}", report.group or whole


def flat(config: Config) -> dict[str, str | int | float | bool | None]:
    """Return every setting by its dotted name, lists and tables as JSON, without secrets."""
    settings = public(config).model_dump(mode="json", exclude={"report", "stages"})
    return dict(_leaves({**settings, "report": {"tags": list(config.report.tags)}}))


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and not prefix:
            yield from _leaves(value, f"{name}.")
        else:
            plain = value is None or isinstance(value, (str, int, float, bool))
            yield f"{prefix}{name}", value if plain else json.dumps(value)
