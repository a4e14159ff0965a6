"""What a run folder keeps of its jobs: `slurm/history.jsonl`, one event a line, and the files beside it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftscale.base import sealed
from ftscale.base.files import open_to_append
from ftscale.base.logs import log
from ftscale.base.sealed import DamagedError, line_of, read_lines
from ftscale.config.stages import stage_folders

Event = dict[str, Any]

_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_START: dict[str, Any] = {"job": str, "restart": int, "time": (int, float), "step": int}
_FIELDS: dict[str, dict[str, Any]] = {
    "submit": {"jobs": list, "time": (int, float)},
    "start": {**_START, "nodes": list},
    "end": {**_START, "reason": str, "counts": bool, "action": str, "progress": int},
}
"""What each kind of event has."""
_METRICS: dict[str, dict[str, Any]] = {"train": {"step": int, "time_s": (int, float), "loss": (int, float, str)}}
_FAILURE: dict[str, Any] = {"rank": int, "host": str, "exit_code": int, "peer_lost": bool, "error": str}
_RESULT: dict[str, Any] = {"status": str, "metrics": dict}


@dataclass(frozen=True)
class Records:
    """The `slurm/` folder of a run."""

    run_folder: Path

    @property
    def folder(self) -> Path:
        """Holds job.sbatch, run.yaml, the jobs' logs, history.jsonl, check.json."""
        return self.run_folder / "slurm"

    @property
    def cancel_mark(self) -> Path:
        """There while the job is to end after its next checkpoint and not to start again."""
        return self.folder / "cancel"

    def add(self, event: str, **fields: Any) -> None:
        """Append one event: submit, start, end; each with `job` and `time` (seconds since 1970)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line = line_of({"event": event, "time": round(time.time(), 3), **fields})
        with open_to_append(self.folder / "history.jsonl") as file:  # one write: several hosts may append
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def events(self, *kinds: str) -> list[Event]:
        """The events of these kinds, oldest first.

        Lines that are not what was written are left out, and counted in the log.
        """
        path = self.folder / "history.jsonl"
        found, damaged = read_lines(path)
        good = [event for event in found if _is_one_of(_FIELDS, event, name="event") and _names_jobs_and_nodes(event)]
        if damaged := damaged + len(found) - len(good):
            log.warning("%d lines of %s are not what was written; left out", damaged, path)
        return [event for event in good if event["event"] in kinds]

    def jobs(self) -> list[str]:
        """Ids of the jobs of the last submission, or of the job that was started by hand since."""
        last = (self.events("submit", "start") or [{}])[-1]
        submitted = (self.events("submit") or [{}])[-1].get("jobs", [])
        return submitted if not last.get("job") or last["job"] in submitted else [last["job"]]


def checkpoint_step(run_folder: Path) -> int:
    """The step of the newest checkpoint folder, of stages their sum; 0 without one."""
    return sum(map(_newest_step, stage_folders(run_folder) or [run_folder]))


def _newest_step(folder: Path) -> int:
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (folder / "checkpoints").glob("step-*"))
    return max((int(match[1]) for match in names if match), default=0)


def run_status(run_folder: Path) -> str:
    """The status in result.json: completed, stopped_early, preempted; "" without one."""
    return str(read_result(run_folder).get("status", ""))


def read_result(run_folder: Path) -> dict[str, Any]:
    """What result.json says; empty where there is none, or a damaged one."""
    found = read_json(run_folder / "result.json")
    return found if _has(_RESULT, found) else {}


def read_failure(path: Path) -> dict[str, Any]:
    """What logs/failure.json says; empty where there is none, or a damaged one."""
    found = read_json(path)
    return found if _has(_FAILURE, found) else {}


def train_lines(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that tell of optimizer steps; those that are not what was written are left out."""
    found, _ = read_lines(run_folder / "metrics.jsonl")
    return [line for line in found if _is_one_of(_METRICS, line, name="kind")]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none, or one that is not what was written."""
    try:
        return sealed.read_json(path)
    except (FileNotFoundError, DamagedError):
        return {}


def is_job(name: object) -> bool:
    """Whether it is the number of a job, or of one task of an array (12_3): all that is handed to Slurm's commands."""
    return isinstance(name, str) and bool(_JOB.fullmatch(name))


def _names_jobs_and_nodes(event: Event) -> bool:
    """Whether each job is a number and each node a name: anything else might be an option of a command."""
    jobs = [event["job"]] if "job" in event else event["jobs"]
    nodes = event.get("nodes", [])
    return all(map(is_job, jobs)) and all(isinstance(node, str) and _NODE.fullmatch(node) for node in nodes)


def _is_one_of(kinds: Mapping[str, dict[str, Any]], line: dict[str, Any], *, name: str) -> bool:
    kind = line.get(name)
    return isinstance(kind, str) and kind in kinds and _has(kinds[kind], line)


def _has(fields: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether each field is there, with a value of its types."""
    return all(isinstance(found.get(name), types) for name, types in fields.items())
