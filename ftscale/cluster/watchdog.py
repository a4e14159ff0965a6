"""Waiting for the training step: it ends by itself, or is ended where it hangs."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ftscale.base.logs import FAILURE, LOGS
from ftscale.cluster.records import Records
from ftscale.cluster.step import Allocation, Step
from ftscale.run.folder import current_folder

POLL_S = 0.5
HANGING_S = 30.0  # after a rank's error or the last save: srun waits for nodes that are gone
DUMP_S = 15.0  # for the ranks to write where they stand
RANK_LINE = re.compile(r"rank \d+ is process (\d+) on (\S+)")


@dataclass
class Watchdog:
    """Looks at a step and at what its ranks write into the run folder."""

    step: Step
    allocation: Allocation
    records: Records
    silence_s: float
    """Without a word for so long, the step is ended; counts from the first step of training on."""
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.folder = self.records.run_folder
        self._result_before = changed_at(self.folder / "result.json")

    @property
    def trained(self) -> Path:
        """Where the ranks write: the run folder, or that of the stage that is trained."""
        return current_folder(self.folder)

    @property
    def has_saved(self) -> bool:
        """Whether this start has written its result."""
        return changed_at(self.folder / "result.json") not in (0, self._result_before)

    def wait(self, *, leaves: Callable[[], bool]) -> tuple[float, tuple[str, ...]]:
        """Until the step is over. Returns for how long it was silent when it was ended for that, and on which nodes.

        `leaves`: whether Slurm ends the job by itself; then there is little time, and the rest is Slurm's once the run
        has saved.
        """
        # seconds are counted in polls, not by the clock: a job that Slurm suspended for an hour does not hang
        began, word, over_s, silent_s = time.time(), 0, 0.0, 0.0
        while self.step.is_running:
            time.sleep(POLL_S)
            if leaves() and self.has_saved:
                break
            if over_s or self.has_saved or (self.trained / LOGS / FAILURE).exists():
                over_s += POLL_S
                if over_s > HANGING_S:  # not sooner: where a node is lost, Slurm requeues the job by itself
                    self.say(f"not over {HANGING_S:.0f} s after a rank failed or saved; ending the step")
                    self.step.end()
                continue
            trains = changed_at(self.trained / "metrics.jsonl") > began * 1e9
            word, before = self._last_word(), word
            silent_s = silent_s + POLL_S if word == before and trains else 0.0
            if silent_s > self.silence_s:
                nodes = self._silent_nodes()
                self.say(f"nothing written for {silent_s:.0f} s; ending the step")
                self.step.end()
                return silent_s, nodes
        return 0.0, ()

    def _last_word(self) -> int:
        """When the run last wrote something: metrics, a log, a part of a checkpoint. Nanoseconds since 1970."""
        folder = self.trained
        paths = [folder / "metrics.jsonl", folder / "checkpoints"]
        paths += [*(folder / LOGS).glob("rank-*.log"), *(folder / "checkpoints").glob(".*/*")]
        return max(map(changed_at, paths))

    def _silent_nodes(self) -> tuple[str, ...]:
        """Ask every rank to write where it stands into its log; the nodes of those that do not."""
        began = self.records.events("start")[-1]["time"]  # other ranks' logs may be left of an earlier start
        logs = [path for path in self.trained.glob(f"{LOGS}/rank-*.log") if path.stat().st_mtime > began]
        places = {
            log: found[-1]
            for log in logs
            if (found := RANK_LINE.findall(log.read_text(encoding="utf-8", errors="replace")))
        }
        sizes = {log: log.stat().st_size for log in places}
        nodes = self.allocation.nodes
        pids = {node: [pid for pid, host in places.values() if host == node] for node in nodes}
        cases = " ".join(f"{node}) kill -USR2 {' '.join(ids)} ;;" for node, ids in pids.items() if ids)
        ask = ["bash", "-c", f"case $SLURMD_NODENAME in {cases} esac"]
        options = ["--overlap", "--mem=0", "--gres=none"]  # beside the step that has everything
        with suppress(subprocess.TimeoutExpired):  # a node that is gone; its ranks are silent too
            subprocess.run(self.allocation.srun(ask, tasks_per_node=1, name="ask", options=options), timeout=DUMP_S)
        time.sleep(2.0)
        silent = {places[log][1] for log in places if log.stat().st_size == sizes[log]}
        return tuple(node for node in nodes if node in silent) if len(silent) < len(nodes) else ()


def changed_at(path: Path) -> int:
    """When a file was written, in nanoseconds since 1970; 0 = it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
