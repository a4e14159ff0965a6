"""A step of a job: its processes under srun, the signals they get, and how the first of them ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ftscale.base.errors import UserError
from ftscale.cluster import slurm

KILL_S = 10.0  # from SIGKILL to the end of its processes
READ_S = 30.0  # for the last lines of a step's errors
TASK_ENDED = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (?:Exited with exit code (\d+)|(.+))")
KILLED = {"137": "Killed", "139": "Segmentation fault", "135": "Bus error"}
"""Ends of a task that come from outside of it, by the exit code that a launcher makes of them."""


@dataclass(frozen=True)
class Allocation:
    """What Slurm gave this process's job."""

    job: str = field(default_factory=slurm.own_job)
    restart: int = field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    nodes: list[str] = field(default_factory=lambda: slurm.hostnames(os.environ["SLURM_JOB_NODELIST"]))
    cpus: int = field(default_factory=lambda: _least_cpus(os.environ.get("SLURM_JOB_CPUS_PER_NODE", "1")))
    """Of the node with the fewest."""
    gpus: int = field(default_factory=lambda: int(os.environ.get("SLURM_GPUS_ON_NODE", "1")))

    def srun(self, command: Sequence[str], *, tasks_per_node: int, name: str, options: Sequence[str] = ()) -> list[str]:
        """The command line of a step on all nodes."""
        shape = [f"--nodes={len(self.nodes)}", f"--ntasks-per-node={tasks_per_node}"]
        shape += [f"--ntasks={len(self.nodes) * tasks_per_node}"]
        shape += [f"--cpus-per-task={max(1, self.cpus // tasks_per_node)}"]
        return ["srun", f"--job-name={name}", *shape, "--kill-on-bad-exit=1", *options, *command]

    def environment(self, *, processes: int, interface: str) -> dict[str, str]:
        """Return the variables by which ranks find each other.

        `processes`: of a node; `interface`: the network between nodes, "" = any.
        """
        # below the ephemeral ports, another one for each job and start
        port = 20_000 + (int(os.environ["SLURM_JOB_ID"]) * 101 + self.restart) % 12_000
        return {
            "MASTER_ADDR": self.nodes[0],
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, self.cpus // processes))),
            **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
        }


@dataclass(frozen=True)
class Start:
    """How ftscale is started on a node: by this process's Python, or in a container."""

    options: Sequence[str] = ()
    """Further ones of srun."""
    program: Sequence[str] = (sys.executable, "-m", "ftscale")
    """The words before ftscale's own."""

    @property
    def variables(self) -> dict[str, str]:
        """What the environment has besides: in a container, no packages out of the user's home."""
        return {} if self.program[0] == sys.executable else {"PYTHONNOUSERSITE": "1"}


ON_NODE = Start()


class Step:
    """`ftscale COMMAND` on every node."""

    def __init__(
        self,
        allocation: Allocation,
        command: Sequence[str],
        *,
        name: str,
        tasks_per_node: int,
        environment: dict[str, str],
        options: Sequence[str] = (),
        start: Start = ON_NODE,
    ) -> None:
        self.name = name
        self.job = allocation.job
        words = [*start.program, *command]
        self.process = subprocess.Popen(
            allocation.srun(words, tasks_per_node=tasks_per_node, name=name, options=[*options, *start.options]),
            env={**os.environ, **environment, **start.variables},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.ends: list[tuple[str, str]] = []
        """Nodes of the tasks that ended in an error and how, in the order in which srun tells of them."""
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        """Tell whether srun has not ended yet."""
        return self.process.poll() is None

    def ask_to_save(self) -> None:
        """SIGUSR1 to srun, which hands it to the tasks."""
        if self.is_running:
            self.process.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        """SIGKILL to all processes, and then to srun, which would wait for those of a node that is gone."""
        if not self.is_running:
            return
        with suppress(UserError):  # the controller does not answer: srun alone is ended
            for line in slurm.call("squeue", "--steps", "-h", "-j", self.job, "-o", "%i %j").splitlines():
                step, _, name = line.partition(" ")
                if name == self.name:
                    slurm.call("scancel", "--signal=KILL", step)
        try:
            self.process.wait(timeout=KILL_S)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def first_end(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """The exit code, and the node of the first task that ended in an error with what killed it; () = nothing did.

        The others' ends are what the first one led to, and srun's own code is the last one's.
        """
        if not self.is_running:
            self._reader.join(timeout=READ_S)
        code = self.process.poll() or 0
        if not self.ends:
            return code, ()
        node, how = self.ends[0]
        how = KILLED.get(how, how)
        killed = ((node, how),) if how in (*KILLED.values(), "Out Of Memory") else ()
        return int(how) if how.isdecimal() else code, killed

    def _pass_on(self) -> None:
        """Copy the step's errors to this process's, and note the ends of tasks among them."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            if match := TASK_ENDED.match(line):
                self.ends.append((match[1], match[2] or match[3].strip()))


def _least_cpus(text: str) -> int:
    """Return the fewest processors of a node, which are 8 in `16(x2),8`."""
    return min(int(part.partition("(")[0]) for part in text.split(","))
