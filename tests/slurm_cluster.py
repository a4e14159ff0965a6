"""A Slurm cluster on this machine, what goes wrong on it, and what its jobs say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny

from ftscale.cluster import slurm
from ftscale.cluster.records import Records, checkpoint_step

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "slurm" / "cluster.sh"
PATIENCE_S = 1800.0  # a start of four processes takes 15 s on two quiet cores


class Cluster:
    """Nodes n1 to nN; `folder` is a disk that all of them see, `scratch` one that each has for itself."""

    def __init__(self, count: int, *, shared: Path) -> None:
        self.nodes = [f"n{number + 1}" for number in range(count)]
        self.shared = shared
        self.folder = Path(tempfile.mkdtemp(prefix="fts"))  # short, for unix sockets
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + 1
        number = next(n for n in range(number, 250, 17) if not Path(f"/sys/class/net/fts{n}br").exists())
        self.scratch = self.folder / "scratch"
        self._before, self._cwd = dict(os.environ), Path.cwd()
        # what DeepSpeed has compiled for its first run under ZeRO, a minute's work, is kept as on a real machine
        usual = Path.home() / ".cache/torch_extensions" / f"py3{sys.version_info.minor}_cpu"
        compiled = os.environ.get("TORCH_EXTENSIONS_DIR", str(usual))
        os.environ |= {
            "TORCH_EXTENSIONS_DIR": compiled,
            **{"FTS_DIR": str(self.folder), "FTS_NET": f"10.91.{number}", "FTS_TAG": f"fts{number}"},
            **{"SLURM_CONF": str(self.folder / "etc" / "slurm.conf"), "HOME": str(self.folder), "OMP_NUM_THREADS": "1"},
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the job scripts call `python`
        }
        os.chdir(self.folder)
        self.site()
        self.do("up", str(count))

    def down(self) -> None:
        """End everything; fails where a daemon is left."""
        self.do("down")
        os.environ.clear()
        os.environ |= self._before
        os.chdir(self._cwd)
        left = subprocess.run(["pgrep", "-af", str(self.folder)], capture_output=True, text=True).stdout
        assert not left, left
        shutil.rmtree(self.folder)

    def site(self, **settings: Any) -> None:
        """Write the site's cluster.yaml."""
        usual = {"min_free_gib": 0.001, "time": "120", "silence_s": 600}
        tiny.write_run(self.folder, usual | settings, name="cluster.yaml")

    def do(self, *command: str) -> str:
        """`cluster.sh COMMAND`."""
        done = subprocess.run(["bash", str(SCRIPT), *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def settle(self) -> None:
        """End all jobs, bring all nodes back; fails where a process of a job is left."""
        slurm.call("scancel", "--user=root")
        wait_for(lambda: not slurm.call("squeue", "-h").strip(), "all jobs to end")
        for node in self.nodes:
            self.do("link", node, "up")
            self.do("start", node)
        wait_for(lambda: all(self._is_idle(node) for node in self.nodes), "all nodes to be idle")
        wait_for(lambda: not any(map(self.processes, self.nodes)), "no process to be left on any node")

    def _is_idle(self, node: str) -> bool:
        state = slurm.node_states([node])[node]
        if "DRAIN" in state or "DOWN" in state:
            subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], capture_output=True)
        return state == "IDLE"

    def processes(self, node: str, pattern: str = "") -> dict[int, str]:
        """The jobs' processes on a node, by the node's own process ids."""
        lines = self.do("exec", node, "ps", "-eo", "pid=,args=").splitlines()
        found = {int(pid): words for pid, words in (line.split(None, 1) for line in lines)}
        own = ("ps -eo", "slurmd ", "bash ", "sleep 0.2", "[")  # of the node, and what waits to be reaped
        return {pid: words for pid, words in found.items() if pattern in words and not words.startswith(own)}

    # ------------------------------------------------------------ runs

    def run_file(self, name: str, *, steps: int, data: dict[str, Any] | None = None, **changes: Any) -> Path:
        """A language model of 260,032 weights on captions."""
        captions = self.shared / "data/translation/multi30k_de-en"
        values = {
            "task": {"name": "causal_lm", "max_length": 64},
            "run_folder": str(self.folder / name),
            "model": str(self.shared / "weights/stories260K"),
            "data": {
                "train": {"path": str(captions / "train.en.gz"), "format": "text", "limit": 2000},
                "eval": {"path": str(captions / "val.en.gz"), "format": "text", "limit": 32},
                "cache_dir": str(self.folder / "cache"),
                **(data or {}),
            },
            "batch": {"global_size": 8},
            "optimizer": {"lr": 1e-3},
            "train": {"max_steps": steps, "log_every": 5},
            "checkpoint": {"prove": "never"},
            **changes,
        }
        return tiny.write_run(self.folder, values, name=f"{name}.yaml")

    def own_model(self, name: str, code: str) -> Path:
        """The same weights under a class of one's own; `code` defines OwnForCausalLM. Written anew: the code is."""
        model = self.folder / name
        shutil.copytree(self.shared / "weights/stories260K", model, dirs_exist_ok=True)
        (model / "modeling_own.py").write_text(code)
        config = json.loads((model / "config.json").read_text())
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        (model / "config.json").write_text(json.dumps(config))
        return model

    def submit(self, run: Path, *options: object, overrides: tuple[str, ...] = (), code: int = 0) -> tiny.Outcome:
        """`ftscale submit`, in this process."""
        outcome = tiny.command("submit", run, *overrides, *options)
        assert outcome.code == code, outcome.stdout + outcome.stderr
        return outcome


class Job:
    """The newest job of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records = Records(folder)

    @property
    def id(self) -> str:
        return self.records.jobs()[0]

    @property
    def fields(self) -> dict[str, str]:
        return slurm.job_fields(self.id)

    @property
    def nodes(self) -> list[str]:
        return self.records.events("start")[-1]["nodes"]

    @property
    def log(self) -> str:
        paths = sorted((self.folder / "slurm").glob("job-*.log"))
        return "".join(path.read_text(errors="replace") for path in paths)

    @property
    def ends(self) -> list[dict[str, Any]]:
        return self.records.events("end")

    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in self.metrics("train")}

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [row for row in rows if row["kind"] == kind]

    def wait_for_start(self, number: int) -> None:
        """Until the job has started so often."""
        wait_for(lambda: len(self.records.events("start")) >= number, f"start {number} of {self.folder}", job=self)

    def wait_for_step(self, step: int, *, start: int) -> None:
        """Until the `start`th start (from 1 on) has trained so far."""
        self.wait_for_start(start)
        began = self.records.events("start")[start - 1]["time"]
        path = self.folder / "metrics.jsonl"

        def reached() -> bool:
            rows = self.metrics("train") if path.is_file() and path.stat().st_mtime > began else []
            return bool(rows) and rows[-1]["step"] >= step

        wait_for(reached, f"step {step} of {self.folder}", job=self)

    def wait_for_checkpoint(self, *, after: int) -> int:
        wait_for(lambda: checkpoint_step(self.folder) > after, f"a checkpoint after step {after}", job=self)
        return checkpoint_step(self.folder)

    def wait_for_end(self, *states: str) -> str:
        """Until the job has ended for good; returns its state, which must be one of `states`."""
        wait_for(lambda: self.fields["JobState"] in slurm.ENDED, f"the end of {self.id}", job=self)
        state = self.fields["JobState"]
        assert state in (states or ("COMPLETED",)), f"{state}\n{self.log}"
        return state


def wait_for(condition: Callable[[], Any], what: str, *, job: Job | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            queue = subprocess.run(["squeue"], capture_output=True, text=True).stdout
            raise AssertionError(f"waited {PATIENCE_S:.0f} s for {what}\n{queue}\n{job.log[-6000:] if job else ''}")
        time.sleep(0.5)
