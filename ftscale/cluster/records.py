"""What a run folder keeps of its jobs: `slurm/history.jsonl`, one event a line, and the files beside it."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]


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
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields})
        with (self.folder / "history.jsonl").open("a") as file:  # one write: several hosts may append
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self, *kinds: str) -> list[Event]:
        """The events of these kinds, oldest first; a torn last line is left out."""
        path = self.folder / "history.jsonl"
        found = [_parsed(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [event for event in found if event.get("event") in kinds]

    def jobs(self) -> list[str]:
        """Ids of the jobs of the last submission, or of the job that was started by hand since."""
        last = (self.events("submit", "start") or [{}])[-1]
        submitted = (self.events("submit") or [{}])[-1].get("jobs", [])
        return submitted if not last.get("job") or last["job"] in submitted else [last["job"]]


def checkpoint_step(run_folder: Path) -> int:
    """The step of the newest checkpoint folder; 0 without one."""
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (run_folder / "checkpoints").glob("step-*"))
    return max((int(match[1]) for match in names if match), default=0)


def run_status(run_folder: Path) -> str:
    """The status in result.json: completed, stopped_early, preempted; "" without one."""
    return str(read_json(run_folder / "result.json").get("status", ""))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is none, or a torn one."""
    try:
        return _parsed(path.read_text())
    except FileNotFoundError:
        return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError:
        return {}
