"""How runs stand while they go on: `ftscale watch`, in a terminal, or in a browser of this machine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftscale.base.errors import UserError
from ftscale.base.sealed import DamagedError, unsealed
from ftscale.base.shown import shown
from ftscale.cluster import slurm
from ftscale.cluster.records import Records, read_result
from ftscale.cluster.watch import duration, num_steps
from ftscale.config.stages import STAGES, stage_folders
from ftscale.metrics.main_metrics import main_metrics
from ftscale.train.display import sparkline

if TYPE_CHECKING:
    from rich.table import Table

DEPTH = 3
"""Folders below the one that is watched in which runs are looked for."""
RECENT_STEPS = 32
"""Whose losses are drawn, and whose pace tells when a run will be done."""
SILENT_S = 300.0
"""A run without a line for so long is told to be silent."""
WIDE = 110
"""Columns of a terminal that has room for everything."""
STATES_S = 20.0
"""How often Slurm is asked for the state of a job."""


def runs_in(folder: Path) -> list[Path]:
    """The run folders there: itself, or those in it; stages are parts of their run. Raises UserError for none."""
    level, found = [folder], []
    for _ in range(DEPTH + 1):
        found += [path for path in level if (path / "run.json").is_file() or (path / "slurm/history.jsonl").is_file()]
        below = [path for path in level if path not in found and path.is_dir()]
        level = [inner for path in below for inner in sorted(path.iterdir()) if inner.name != STAGES and inner.is_dir()]
    if not found:
        raise UserError(f"{folder} holds no run, nor do folders in it; name a run_folder, or a folder of runs.")
    return found


@dataclass
class Watched:
    """A run, of whose metrics.jsonl what is new is read each time."""

    folder: Path
    name: str
    step: int = 0
    time_s: float = 0.0
    tokens_per_s: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    paces: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """Steps, and when each ended."""
    scores: dict[str, Any] = field(default_factory=dict)
    """Of the last evaluation."""
    _file: Path | None = None
    _at: int = 0
    """How many bytes of the file have been read."""
    _job: tuple[float, str] = (0.0, "")
    """When Slurm was asked last, and what it said."""

    @property
    def stage(self) -> Path:
        """The folder that is written to: of the stage that began last, or its own."""
        return (stage_folders(self.folder) or [self.folder])[-1]

    @property
    def total(self) -> int:
        """Optimizer steps of the run, or of its stage; 0 = not known yet."""
        return num_steps(self.stage)

    def read(self) -> None:
        """Take in the lines that came since."""
        path = self.stage / "metrics.jsonl"
        try:
            size = path.stat().st_size
            if path != self._file or size < self._at:  # another stage, or cut by a resume
                self._file, self._at = path, 0
            with path.open("rb") as file:
                file.seek(self._at)
                text = file.read(size - self._at)
        except OSError:  # none yet
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            try:
                self._take(unsealed(line))
            except (DamagedError, KeyError, TypeError, ValueError):
                continue

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("kind") == "train":
            self.step, self.time_s = int(line["step"]), float(line["time_s"])
            self.losses.append(float(line["loss"]))
            self.paces.append((self.step, self.time_s))
            speed = line.get("tokens_per_s")
            self.tokens_per_s = float(speed) if isinstance(speed, (int, float)) else None
        elif line.get("kind") == "eval" and not any(name.startswith("test/") for name in line):
            self.scores = {name: value for name, value in line.items() if isinstance(value, (int, float))}

    @property
    def state(self) -> str:
        """How it ended; else what Slurm says of a job that is not running; else going on, or how long it is silent."""
        if result := read_result(self.folder):
            return str(result["status"])
        job = self._job_state()
        if job and job != "RUNNING":
            return job.lower()
        try:
            silent = time.time() - (self.stage / "metrics.jsonl").stat().st_mtime
        except OSError:
            return "starting"
        return f"silent for {duration(silent)}" if silent > SILENT_S else "going on"

    def _job_state(self) -> str:
        """Of the newest job; "" where there is none, or Slurm does not answer."""
        asked, said = self._job
        if time.monotonic() - asked > STATES_S or not asked:
            try:
                jobs = Records(self.folder).jobs()
                said = slurm.job_fields(jobs[-1]).get("JobState", "") if jobs else ""
            except UserError:
                said = ""
            self._job = (time.monotonic(), said)
        return said

    @property
    def left(self) -> str:
        """How long the steps that are left take at the pace of the last ones."""
        if len(self.paces) < 2 or not self.total or self.step >= self.total:
            return ""
        (first, began), (last, ended) = self.paces[0], self.paces[-1]
        return duration((self.total - last) * (ended - began) / (last - first)) if last > first else ""

    @property
    def score(self) -> str:
        """Of the last evaluation the score that chooses, as far as it is known, or the first besides the loss."""
        best = str((read_result(self.folder).get("best") or {}).get("metric"))
        names = [name for name in main_metrics(self.scores) if name not in ("step", "time_s")]
        others = [name for name in names if name != "loss"]
        name = best if best in names else (others or names or [""])[0]
        return f"{name} {self.scores[name]:.4g}" if name else ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come: it has a result, and no job that starts it again."""
        return bool(read_result(self.folder)) and self.state != "preempted"


def watch(folder: Path, known: Sequence[Watched] = ()) -> list[Watched]:
    """The runs of a folder, to be read; those that are known already go on from where they were read to."""
    there = {run.folder: run for run in known}
    return [there.get(path) or Watched(path, _name_in(folder, path)) for path in runs_in(folder)]


def _name_in(folder: Path, run: Path) -> str:
    return shown(str(run.relative_to(folder)) if run != folder else run.resolve().name)


def table_of(runs: Sequence[Watched], *, width: int) -> Table:
    """How they stand, a line a run, as wide as the terminal allows."""
    from rich.table import Table
    from rich.text import Text

    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ["run", "state", "step", "loss", *(["", "tokens/s"] if wide else []), "last evaluation", "left"]
    for place, name in enumerate(names):
        table.add_column(name, no_wrap=place > 0, overflow="fold" if place == 0 else "ellipsis", max_width=width // 3)
    for run in runs:
        run.read()
        total = run.total
        loss = f"{run.losses[-1]:.4f}" if run.losses else ""
        speed = "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}"
        state = run.state
        cells = [run.name, state, f"{run.step:,}" + (f"/{total:,}" if total else ""), loss]
        cells += [sparkline(run.losses), speed] if wide else []
        style = "red" if state == "failed" else "green" if state == "completed" else ""
        table.add_row(*(Text(cell) for cell in [*cells, run.score, run.left]), style=style)
    return table


def watch_in_terminal(folder: Path, *, every_s: float, once: bool) -> None:
    """Draw the table, again and again until all runs have ended or somebody interrupts."""
    from rich.console import Console
    from rich.live import Live

    console, runs = Console(), watch(folder)
    if once or not console.is_terminal:
        console.print(table_of(runs, width=console.width))
        return
    drawn = Live(table_of(runs, width=console.width), console=console, auto_refresh=False)
    with suppress(KeyboardInterrupt), drawn:
        while not all(run.ended for run in runs):
            time.sleep(every_s)
            runs = watch(folder, runs)
            drawn.update(table_of(runs, width=console.width), refresh=True)
