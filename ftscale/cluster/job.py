"""What the job script runs on its first node: check the nodes, start the step, watch it, decide what follows."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ftscale.checks import read_config
from ftscale.cluster import slurm
from ftscale.cluster.health import CHECK_FOLDER, compare_reports
from ftscale.cluster.node import LAUNCHERS
from ftscale.cluster.outcome import Facts, Verdict, bounded, judge, judge_nodes
from ftscale.cluster.records import Records, checkpoint_step, read_json, run_status
from ftscale.errors import EXIT_DONE, UserError, unknown_name
from ftscale.logs import FAILURE, LOGS

POLL_S = 0.5
CHECK_S = 58.0  # the health check takes less than a minute, or names the nodes that did not answer
HANGING_S = 30.0  # after a rank's error or the last save: srun waits for nodes that are gone
LIMIT_S = 5.0  # Slurm looks at time limits every half a minute
DUMP_S = 15.0  # for the ranks to write where they stand
TASK_ENDED = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: (?:Exited with exit code (\d+)|(.+))")
KILLED = {"137": "Killed", "139": "Segmentation fault", "135": "Bus error"}
"""Ends of a task that come from outside of it, by the exit code that a launcher makes of them."""
RANK_LINE = re.compile(r"rank \d+ is process (\d+) on (\S+)")


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
    """Without a word in the run folder for so long, the step is ended; counts from the first step on."""
    scratch: str
    """Of the health check, as the three below; "" = the temporary folder."""
    min_free_gib: float
    max_clock_skew_s: float
    interface: str
    """Network interface between nodes; "" = what gloo and NCCL choose."""


def run_job(run: Path, overrides: Sequence[str], settings: JobSettings) -> int:
    """Train as RUN.yaml says in this job's allocation; returns the exit code of the job script.

    Raises UserError: a mistake in the configuration, before anything is started.
    """
    config = read_config(run, overrides)
    _check(settings)
    records = Records(Path(config.run_folder))
    job = Job([str(run), *overrides], settings, records, before_end_s=config.checkpoint.before_end_s)
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


@dataclass
class Job:
    """One start of a job, in the process that is its batch step."""

    arguments: list[str]
    settings: JobSettings
    records: Records
    before_end_s: float
    """So long before the time limit the run saves and ends by itself, where Slurm tells it the time."""
    id: str = field(default_factory=slurm.own_job)
    restart: int = field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    nodes: list[str] = field(default_factory=lambda: slurm.hostnames(os.environ["SLURM_JOB_NODELIST"]))
    signal: str = ""
    """The first signal that reached this process."""
    step: subprocess.Popen[str] | None = None
    began_at: int = 0
    """Step of the checkpoint that this start goes on from."""

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
        if number == signal.SIGUSR1 and self.step is not None and self.step.poll() is None:
            self.step.send_signal(signal.SIGUSR1)  # srun hands it to the tasks

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
        options = [f"--scratch={settings.scratch}", f"--min-free-gib={settings.min_free_gib}"]
        command = ["node-check", str(folder), *options, "--", *self.arguments]
        self.step = self._srun(command, tasks_per_node=1, name="check", options=["--wait=0"])
        polls = 0
        while self.step.poll() is None and polls * POLL_S < CHECK_S and not self.signal:
            time.sleep(POLL_S)
            polls += 1
        self._end_step("check")
        if self.signal:
            return judge(self._facts(exit_code=0))
        reports = {node: read_json(folder / f"{node}.json") for node in self.nodes}
        bad, summary = compare_reports(reports, max_clock_skew_s=settings.max_clock_skew_s)
        self.say(f"health check: {summary}")
        for node, reasons in bad.items():
            self.say(f"bad node {node}: {'; '.join(reasons)}")
        return judge_nodes(bad, nodes=self.nodes)

    # ------------------------------------------------------------ the step

    def _train(self) -> Facts:
        result, failure = self.records.run_folder / "result.json", self.records.run_folder / LOGS / FAILURE
        failure.unlink(missing_ok=True)
        before = _changed(result)
        processes = self.settings.processes or int(os.environ.get("SLURM_GPUS_ON_NODE", "1"))
        launcher = self.settings.launcher if processes * len(self.nodes) > 1 else "srun"
        command = ["train", *self.arguments, "--resume"]
        if launcher == "srun":
            self.step = self._srun(command, tasks_per_node=processes, name="train")
        else:
            node = ["node", f"--launcher={launcher}", f"--processes={processes}", "--"]
            self.step = self._srun([*node, *command], tasks_per_node=1, name="train")
        ends: list[tuple[str, str]] = []
        reader = threading.Thread(target=_pass_on, args=(self.step, ends), daemon=True)
        reader.start()
        if self.signal == "SIGUSR1":  # it came before there was a step
            self.step.send_signal(signal.SIGUSR1)
        silent_s, silent_nodes = self._watch(failure, saved=lambda: _changed(result) not in (0, before))
        if self.step.poll() is not None:
            reader.join(timeout=HANGING_S)
        code, killed = _first_end(ends)
        return self._facts(
            exit_code=code or self.step.returncode or 0,
            status=run_status(self.records.run_folder) if _changed(result) not in (0, before) else "",
            failure=(error := read_json(failure)),
            lost_peer=self._node_in(str(error.get("error", ""))),
            silent_s=silent_s,
            silent_nodes=silent_nodes,
            killed=killed,
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

    def _watch(self, failure: Path, *, saved: Callable[[], bool]) -> tuple[float, tuple[str, ...]]:
        """Wait for the step; ends it where it hangs. Returns for how long it was silent, and on which nodes.

        After SIGTERM there is little time: when the run has saved, the rest is Slurm's.
        """
        assert self.step is not None
        began, word, over_s, silent_s = time.time(), 0, 0.0, 0.0
        while self.step.poll() is None:
            time.sleep(POLL_S)
            if self.signal == "SIGTERM" and saved():
                break
            # seconds are counted in polls, not by the clock: a job that Slurm suspended for an hour does not hang
            if over_s or failure.exists() or saved():
                over_s += POLL_S
                if over_s > HANGING_S:
                    self.say(
                        f"the step has not ended {HANGING_S:.0f} s after a rank failed or the run saved; ending it"
                    )
                    self._end_step("train")
                continue
            stepping = _changed(self.records.run_folder / "metrics.jsonl") > began * 1e9
            word, before = _last_word(self.records.run_folder), word
            silent_s = silent_s + POLL_S if word == before and stepping else 0.0
            if silent_s > self.settings.silence_s:
                nodes = self._silent_nodes()
                self.say(f"nothing written for {silent_s:.0f} s; ending the step")
                self._end_step("train")
                return silent_s, nodes
        return 0.0, ()

    def _silent_nodes(self) -> tuple[str, ...]:
        """Ask every rank to write where it stands into its log; the nodes of those that do not."""
        began = self.records.events("start")[-1]["time"]  # other ranks' logs may be left of an earlier start
        logs = [path for path in self.records.run_folder.glob(f"{LOGS}/rank-*.log") if path.stat().st_mtime > began]
        places = {log: found[-1] for log in logs if (found := RANK_LINE.findall(log.read_text(errors="replace")))}
        sizes = {log: log.stat().st_size for log in places}
        pids = {node: [pid for pid, host in places.values() if host == node] for node in self.nodes}
        cases = " ".join(f"{node}) kill -USR2 {' '.join(ids)} ;;" for node, ids in pids.items() if ids)
        ask = ["bash", "-c", f"case $SLURMD_NODENAME in {cases} esac"]
        options = ["--overlap", "--mem=0", "--gres=none"]  # beside the step that has everything
        with suppress(subprocess.TimeoutExpired):  # a node that is gone; its ranks are silent too
            subprocess.run(self._srun_words(ask, tasks_per_node=1, name="ask", options=options), timeout=DUMP_S)
        time.sleep(2.0)
        silent = {places[log][1] for log in places if log.stat().st_size == sizes[log]}
        return tuple(node for node in self.nodes if node in silent) if len(silent) < len(self.nodes) else ()

    def _end_step(self, name: str) -> None:
        """SIGKILL to all of a step's processes, and to srun where it waits for a node that is gone."""
        assert self.step is not None
        if self.step.poll() is not None:
            return
        with suppress(UserError):  # the controller does not answer: srun alone is ended
            for line in slurm.call("squeue", "--steps", "-h", "-j", self.id, "-o", "%i %j").splitlines():
                step, _, its_name = line.partition(" ")
                if its_name == name:
                    self._call("scancel", "--signal=KILL", step)
        try:
            self.step.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.step.kill()

    def _srun(
        self, command: list[str], *, tasks_per_node: int, name: str, options: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "ftscale", *command]
        environment = {**os.environ, **self._environment(tasks_per_node)}
        return subprocess.Popen(
            self._srun_words(words, tasks_per_node=tasks_per_node, name=name, options=options),
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE if name == "train" else None,
            text=True,
            errors="replace",
        )

    def _srun_words(self, command: list[str], *, tasks_per_node: int, name: str, options: Sequence[str]) -> list[str]:
        cpus = _least_cpus(os.environ.get("SLURM_JOB_CPUS_PER_NODE", "1"))
        shape = [f"--nodes={len(self.nodes)}", f"--ntasks-per-node={tasks_per_node}"]
        shape += [f"--ntasks={len(self.nodes) * tasks_per_node}", f"--cpus-per-task={max(1, cpus // tasks_per_node)}"]
        return ["srun", f"--job-name={name}", *shape, "--kill-on-bad-exit=1", *options, *command]

    def _environment(self, tasks_per_node: int) -> dict[str, str]:
        processes = max(tasks_per_node, self.settings.processes or int(os.environ.get("SLURM_GPUS_ON_NODE", "1")))
        cpus = _least_cpus(os.environ.get("SLURM_JOB_CPUS_PER_NODE", "1"))
        # below the ephemeral ports, another one for each job and start
        port = 20_000 + (int(os.environ["SLURM_JOB_ID"]) * 101 + self.restart) % 12_000
        interface = self.settings.interface
        return {
            "MASTER_ADDR": self.nodes[0],
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cpus // processes))),
            **({"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}),
        }

    # ------------------------------------------------------------ records and Slurm

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} [job {self.id}.{self.restart}] {text}", flush=True)

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


def _pass_on(step: subprocess.Popen[str], ends: list[tuple[str, str]]) -> None:
    """Copy the step's errors to this process's, and note the nodes and ends of tasks that srun reports."""
    assert step.stderr is not None
    for line in step.stderr:
        sys.stderr.write(line)
        sys.stderr.flush()
        if match := TASK_ENDED.match(line):
            ends.append((match[1], match[2] or match[3].strip()))


def _first_end(ends: Sequence[tuple[str, str]]) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Exit code of the first task that ended in an error, and its node with how it was killed; 0, () = neither.

    The others' ends are what the first one led to, and srun's own code is the last one's.
    """
    if not ends:
        return 0, ()
    node, how = ends[0]
    how = KILLED.get(how, how)
    killed = ((node, how),) if how in (*KILLED.values(), "Out Of Memory") else ()
    return (int(how) if how.isdecimal() else 0), killed


def _last_word(run_folder: Path) -> int:
    """When the run last wrote something: metrics, a log, a part of a checkpoint. Nanoseconds since 1970."""
    paths = [run_folder / "metrics.jsonl", run_folder / "checkpoints"]
    paths += [*(run_folder / LOGS).glob("rank-*.log"), *(run_folder / "checkpoints").glob(".*/*")]
    return max(map(_changed, paths))


def _changed(path: Path) -> int:
    """When a file was written, in nanoseconds since 1970; 0 = it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _least_cpus(text: str) -> int:
    """Of `16(x2),8` the 8."""
    return min(int(part.partition("(")[0]) for part in text.split(","))
