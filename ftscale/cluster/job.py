"""What the job script runs on its first node: check the nodes, start the step, watch it, decide what follows."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ftscale.base.errors import EXIT_DONE, UserError, unknown_name
from ftscale.base.logs import FAILURE, LOGS
from ftscale.base.shown import shown
from ftscale.base.started import STARTED_BY
from ftscale.base.startup import begin_work, leave_out_working_folder
from ftscale.cluster import slurm
from ftscale.cluster.container import bound_folders, container_problems, program, read_container, runtime_problems
from ftscale.cluster.health import CHECK_FOLDER, compare_reports, package_digest
from ftscale.cluster.node import LAUNCHERS
from ftscale.cluster.outcome import Facts, Verdict, bounded, judge, judge_nodes
from ftscale.cluster.records import Records, checkpoint_step, read_failure, read_json, run_status
from ftscale.cluster.step import ON_NODE, Allocation, Start, Step
from ftscale.cluster.watchdog import POLL_S, Watchdog
from ftscale.config import Config
from ftscale.precheck import read_config
from ftscale.run.folder import at_real_folder, current_folder, holds_run

CHECK_S = 58.0  # the health check takes less than a minute, or names the nodes that did not answer
IMAGE_S = 1800.0  # for an image that is fetched or unpacked before the check
LIMIT_S = 5.0  # Slurm looks at time limits every half a minute


@dataclass(frozen=True)
class JobSettings:
    """The variables at the top of the job script."""

    launcher: str
    """torchrun or accelerate: one a node; srun: none, one task a process."""
    processes: int
    """Processes a node; 0 = its GPUs, or one."""
    on_stop: str
    """requeue = after a stop this job starts again; end = it ends, and the next of a chain goes on."""
    elastic: str
    """yes = a start may have fewer nodes than asked for."""
    max_restarts: int
    silence_s: float
    """As Watchdog's."""
    scratch: str
    """Of the health check, as the three below; "" = the temporary folder."""
    min_free_gib: float
    max_clock_skew_s: float
    interface: str
    """Network interface between nodes; "" = what gloo and NCCL choose."""
    container: str
    """As `container.read_container` reads it; "" = the steps run on the nodes themselves."""


def run_job(run: Path, overrides: Sequence[str], settings: JobSettings) -> int:
    """Train as RUN.yaml says in this job's allocation; returns the exit code of the job script.

    Raises UserError: a mistake in the configuration, before anything is started.
    """
    config = at_real_folder(read_config(run, overrides))
    _check(settings)
    records = Records(Path(config.run_folder))
    start = _start_of_steps(run, config, settings)
    begin_work()
    leave_out_working_folder()
    job = Job([str(run), *overrides], settings, records, start, before_end_s=config.checkpoint.before_end_s)
    with job.listening():
        verdict = job.start()
    return job.conclude(verdict)


def _check(settings: JobSettings) -> None:
    """Raises UserError for a variable of the job script that is not one of its words."""
    choices = {
        "LAUNCHER": (settings.launcher, LAUNCHERS),
        "ON_STOP": (settings.on_stop, ("requeue", "end")),
        "ELASTIC": (settings.elastic, ("yes", "no")),
    }
    if wrong := [unknown_name(name, value, known) for name, (value, known) in choices.items() if value not in known]:
        raise UserError(*wrong)


def _start_of_steps(run: Path, config: Config, settings: JobSettings) -> Start:
    """How steps are started. Raises UserError for a container that is not at hand."""
    if (container := read_container(settings.container)) is None:
        return ON_NODE
    if problems := [*container_problems(container), *runtime_problems(container)]:
        raise UserError(*problems)
    Path(config.run_folder).mkdir(parents=True, exist_ok=True)  # to be bound
    folders = bound_folders(config, more=[settings.scratch, str(run)])
    return Start(*program(container, folders, gpus="SLURM_GPUS_ON_NODE" in os.environ))


@dataclass
class Job:
    """One start of a job, in the process that is its batch step."""

    arguments: list[str]
    settings: JobSettings
    records: Records
    how: Start
    """How its steps are started."""
    before_end_s: float
    """So long before the time limit the run saves and ends by itself, where Slurm tells it the time."""
    allocation: Allocation = field(default_factory=Allocation)
    signal: str = ""
    """The first signal that reached this process."""
    step: Step | None = None
    began_at: int = 0
    """Step of the checkpoint that this start goes on from."""

    def __post_init__(self) -> None:
        self.id, self.restart, self.nodes = self.allocation.job, self.allocation.restart, self.allocation.nodes

    # ------------------------------------------------------------ signals

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGUSR1 goes on to the ranks, which save; after SIGTERM Slurm ends them itself."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGUSR1, signal.SIGTERM)}
        try:
            yield
        finally:
            for number in before:
                signal.signal(number, signal.SIG_IGN)  # a requeue ends this process while it writes its last words

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = self.signal or signal.Signals(number).name
        if number == signal.SIGUSR1 and self.step is not None:
            self.step.ask_to_save()

    # ------------------------------------------------------------ one start

    def start(self) -> Verdict:
        """Everything up to the verdict."""
        self._close_lost_start()
        self.began_at = checkpoint_step(self.records.run_folder)
        self.say(f"start on {', '.join(self.nodes)} from step {self.began_at}")
        self.records.add("start", job=self.id, restart=self.restart, nodes=self.nodes, step=self.began_at)
        if (verdict := self._check_nodes()) is None:
            verdict = judge(self._train())
        earlier = self._series("end")
        progress = checkpoint_step(self.records.run_folder) - self.began_at
        return bounded(verdict, before=earlier, progress=progress, max_restarts=self.settings.max_restarts)

    def conclude(self, verdict: Verdict) -> int:
        """Tell, and act: requeue, or end."""
        self._record_end(verdict.reason, counts=verdict.counts, action=verdict.action)
        if verdict.action == "again":
            return self._again(verdict)
        if self.records.cancel_mark.exists():
            self._call("scancel", *self._followers(), self.id)  # so that the job counts as cancelled
        elif verdict.action in ("done", "stop") and self._followers():
            self._call("scancel", *self._followers())
        return verdict.exit_code

    def _again(self, verdict: Verdict) -> int:
        left_out = [node for node in verdict.leave_out if self._can_do_without(node)]
        if len(left_out) < len(verdict.leave_out):
            self.say(f"too few other nodes: {', '.join(set(verdict.leave_out) - set(left_out))} may be used again")
        if self.settings.on_stop == "end":
            for follower in self._followers():
                self._leave_out(follower, left_out)
            return verdict.exit_code
        if not left_out:
            return EXIT_DONE if self._call("scontrol", "requeue", self.id) else verdict.exit_code
        # ExcNodeList can be changed only while the job is pending
        if not self._call("scontrol", "requeuehold", self.id):
            return verdict.exit_code
        self._leave_out(self.id, left_out)
        self._call("scontrol", "release", self.id)
        return EXIT_DONE

    # ------------------------------------------------------------ the health check

    def _check_nodes(self) -> Verdict | None:
        folder = self.records.folder / CHECK_FOLDER
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.json"):
            old.unlink()
        settings = self.settings
        check_s = CHECK_S + IMAGE_S * bool(settings.container)
        options = [f"--scratch={settings.scratch}", f"--min-free-gib={settings.min_free_gib}"]
        command = ["node-check", str(folder), *options, "--", *self.arguments]
        self.step = self._start_step(command, name="check", options=["--wait=0"])
        polls = 0
        while self.step.is_running and polls * POLL_S < check_s and not self.signal:
            time.sleep(POLL_S)
            polls += 1
        self.step.end()
        if self.signal:
            return judge(self._facts(exit_code=0))
        reports = {node: read_json(folder / f"{node}.json") for node in self.nodes}
        bad, summary = compare_reports(reports, max_clock_skew_s=settings.max_clock_skew_s)
        self.say(f"health check: {summary}")
        if settings.container and {report["ftscale"] for report in reports.values() if report} - {package_digest()}:
            self.say("the ftscale of the image is another one than that of this job script: build the image anew")
        for node, reasons in bad.items():
            self.say(f"bad node {node}: {'; '.join(reasons)}")
        return judge_nodes(bad, nodes=self.nodes)

    # ------------------------------------------------------------ the step

    def _train(self) -> Facts:
        run_folder = self.records.run_folder
        (current_folder(run_folder) / LOGS / FAILURE).unlink(missing_ok=True)
        resume = ["--resume"] * holds_run(run_folder)  # the first start has nothing to go on with
        command, processes = ["train", *self.arguments, *resume], self._processes()
        launcher = self.settings.launcher if processes * len(self.nodes) > 1 else "srun"
        if launcher == "srun":
            self.step = self._start_step(command, name="train", tasks_per_node=processes)
        else:
            node = ["node", f"--launcher={launcher}", f"--processes={processes}", "--"]
            self.step = self._start_step([*node, *command], name="train")
        watchdog = Watchdog(self.step, self.allocation, self.records, self.settings.silence_s, self.say)
        if self.signal == "SIGUSR1":  # it came before there was a step
            self.step.ask_to_save()
        silent_s, silent_nodes = watchdog.wait(leaves=lambda: self.signal == "SIGTERM")
        code, killed = self.step.first_end()
        failure = current_folder(run_folder) / LOGS / FAILURE  # another stage may have begun
        return self._facts(
            exit_code=code,
            # without an error, a run that has written no result had one: it was finished before
            status=run_status(run_folder) if watchdog.has_saved or code == EXIT_DONE else "",
            failure=(error := read_failure(failure)),
            lost_peer=self._node_in(str(error.get("error", ""))),
            silent_s=silent_s,
            silent_nodes=silent_nodes,
            killed=killed,
        )

    def _processes(self) -> int:
        """Return how many processes a node runs."""
        return self.settings.processes or self.allocation.gpus

    def _start_step(
        self, command: list[str], *, name: str, tasks_per_node: int = 1, options: Sequence[str] = ()
    ) -> Step:
        environment = self.allocation.environment(processes=self._processes(), interface=self.settings.interface)
        environment[STARTED_BY] = "ftscale submit"
        return Step(
            self.allocation,
            command,
            name=name,
            tasks_per_node=tasks_per_node,
            environment=environment,
            options=options,
            start=self.how,
        )

    def _facts(self, *, exit_code: int, **more: object) -> Facts:
        wrong = bool(exit_code) and not more.get("status")
        return Facts(
            exit_code=exit_code,
            signal=self.signal,
            cause=self._cause(),
            cancelled=self.records.cancel_mark.exists(),
            lost_nodes=tuple(slurm.lost_nodes(self.nodes)) if wrong or self.signal else (),
            **more,  # type: ignore[arg-type]
        )

    def _node_in(self, text: str) -> str:
        """The node that a message of gloo or NCCL names as the other end; "" = none."""
        for node in self.nodes:
            with suppress(OSError):
                if re.search(rf"\b({re.escape(node)}|{re.escape(socket.gethostbyname(node))})\b", text):
                    return node
        return ""

    def _cause(self) -> str:
        """Why Slurm sent its signal."""
        fields = slurm.job_fields(self.id)
        if fields.get("PreemptTime", "None") not in ("None", "Unknown"):
            return "preempted"
        used, limit = (slurm.seconds(fields.get(name, "")) for name in ("RunTime", "TimeLimit"))
        # SIGUSR1 is sent early for these two reasons only; without a signal the run itself looked at the time
        early_s = LIMIT_S if self.signal else self.before_end_s + LIMIT_S
        over = used is not None and limit is not None and used >= limit - early_s
        return "time limit" if over or self.signal == "SIGUSR1" else ""

    # ------------------------------------------------------------ records and Slurm

    def say(self, text: str) -> None:
        """Print a line to the job's log, behind the time and the job with its number of restarts."""
        print(f"{time.strftime('%H:%M:%S')} [job {self.id}.{self.restart}] {shown(text)}", flush=True)

    def _series(self, *kinds: str) -> list[dict[str, object]]:
        """This submission's events: of this job and of the chain it belongs to."""
        submitted = (self.records.events("submit") or [{}])[-1]
        jobs = submitted.get("jobs", [])
        since = submitted.get("time", 0) if self.id in jobs else 0
        own = jobs if self.id in jobs else [self.id]
        return [event for event in self.records.events(*kinds) if event["job"] in own and event["time"] >= since]

    def _close_lost_start(self) -> None:
        """A start whose end nobody wrote down: its first node was lost, or it was killed."""
        events = self._series("start", "end")
        if events and events[-1]["event"] == "start":
            last = events[-1]
            lost = slurm.lost_nodes(last["nodes"])  # type: ignore[arg-type]
            why = f"{', '.join(lost)} down" if lost else "killed from outside"
            step = checkpoint_step(self.records.run_folder)
            about = {"job": last["job"], "restart": last["restart"], "reason": why, "action": "leave"}
            self.records.add("end", **about, counts=False, step=step, progress=step - int(last["step"]))  # type: ignore[call-overload]
            self.say(f"the start before ended without a word: {why}")

    def _record_end(self, reason: str, *, counts: bool, action: str) -> None:
        step = checkpoint_step(self.records.run_folder)
        about = {"job": self.id, "restart": self.restart, "reason": reason, "counts": counts, "action": action}
        self.records.add("end", **about, step=step, progress=step - self.began_at)
        words = {"again": "starting again", "stop": "stopping", "done": "done", "leave": "Slurm decides"}
        self.say(f"{reason}; at step {step}; {words[action]}")

    def _followers(self) -> list[str]:
        """Jobs of the chain after this one."""
        jobs = self.records.jobs()
        return jobs[jobs.index(self.id) + 1 :] if self.id in jobs else []

    def _leave_out(self, job: str, nodes: Sequence[str]) -> None:
        if nodes:
            already = slurm.hostnames(slurm.job_fields(job).get("ExcNodeList", "").replace("(null)", ""))
            names = ",".join(sorted({*already, *nodes}))
            for _ in range(10):  # a job that was requeued just now is not pending yet
                if self._call("scontrol", "update", f"JobId={job}", f"ExcNodeList={names}"):
                    return
                time.sleep(POLL_S)

    def _can_do_without(self, node: str) -> bool:
        """Whether the partition has enough nodes besides this one."""
        fields = slurm.job_fields(self.id)
        needed = 1 if self.settings.elastic == "yes" else len(self.nodes)
        names = slurm.call("sinfo", "-h", "-N", "-p", fields.get("Partition", ""), "-o", "%N").split()
        states = slurm.node_states(sorted(set(names)))
        excluded = slurm.hostnames(fields.get("ExcNodeList", "").replace("(null)", ""))
        return sum(slurm.is_usable(state) for name, state in states.items() if name not in (node, *excluded)) >= needed

    def _call(self, *command: str) -> bool:
        try:
            slurm.call(*command)
        except UserError as error:
            self.say(f"{' '.join(command)}: {error}")
            return False
        return True
