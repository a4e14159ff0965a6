"""Strikes real runs in every phase, starts them again until they complete, and compares with the uninterrupted run.

    python benchmarks/chaos.py [--seed 0] [--only ddp-map-full ...]

A case is a strategy, a kind of data and what trains, on 2 processes on this machine; needs ../shared and root. Each
fault strikes in each phase once, dealt over the cases: at a random instant between steps, or where one rank stands
still in the phase (benchmarks/struck.py), from just there to 0.3 s later. Every start ends by itself or counts as a
hang. What must hold at the end of a case: the rows of each optimizer step, its loss and the final weights are those of
the uninterrupted run, bit for bit; in the `changing` cases, where each start has another number of processes, the rows
exactly, losses and weights to 1e-5, with an epsilon of AdamW's that makes no step of a gradient that is nothing but
rounding. Results go into benchmarks/results/chaos.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.small_disk import SmallDisk, small_disk  # noqa: E402

SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks/results/chaos.json"
WORK = ROOT / "runs/chaos"

STEPS = 60
PROCESSES = 2
CHANGING = (1, 2, 3)  # numbers of processes to draw from
START_LIMIT_S = 1200.0  # a start that has not ended by then hangs: longer than any of a slow machine
PATIENCE_S = 300.0  # distributed.timeout_s: ranks may be that far apart on a busy machine
IMPATIENCE_S = 60.0  # the same where a rank will be stopped, which costs that long
DISK_BYTES = 64 * 2**20  # of the small file system that the run folder lies on
LATER_S = 2.5  # how long after its first new step a start of a run of STEPS may be struck between steps
LATE_S = 0.3  # how long after a phase has begun a fault may strike
FROZEN_S = (2.0, 10.0)  # how long a slow disk lets its writers wait

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
DATA = ("map", "stream")
TRAINS = ("full", "lora", "adamw_8bit")

WRONG = ("hangs", "failed_starts", "wrong_rows", "wrong_losses", "wrong_weights", "wrong_refusals")

INSTANT = "between steps"
PHASES: dict[str, dict[str, Any]] = {
    # in the order of a run: what benchmarks/struck.py waits for, and which of the meetings it may be
    "reading data": {"event": "open", "path": r"/train\.en\.gz$", "most": 2},
    "preparing data": {"call": "ftscale.run.prepared_data:Preparer.__call__", "most": 1},  # each worker does little
    "opening the run folder": {"event": "open", "path": r"/run/\.(config\.yaml|data\.json|run\.json)\.", "most": 3},
    "first step": {"call": "ftscale.train.loop:_train_step", "most": 1},
    "saving": {"event": "open", "path": r"/checkpoints/\.step-\d+\.partial/", "most": 6},
    "sealing": {"call": "ftscale.train.checkpoint:seal", "most": 2},
    "evaluating": {"call": "ftscale.train.evaluate:evaluate", "most": 2},
    INSTANT: {},
    "resuming": {"call": "ftscale.run.train:load_checkpoint", "most": 1},
    "rotating": {"event": "shutil.rmtree", "path": r"/checkpoints/step-", "most": 1},
    "writing the final model": {"event": "open", "path": r"/\.model\.[^/]*\.partial", "most": 3},
    "proving": {"event": "subprocess.Popen", "path": "ftscale-proof-", "most": 1},
}
BY_RANK_0 = ("opening the run folder", "sealing", "rotating", "writing the final model", "proving")
BY_ANY = ("reading data", "preparing data")  # the rank that comes first does it for all
ANEW = ("reading data", "preparing data", "opening the run folder", "first step")  # a run that has saved passes them


@dataclass(frozen=True)
class Kill:
    """One fault, and what the run did about it."""

    fault: str
    at_step: int
    """Steps of metrics.jsonl when it struck; -1 = before the first."""
    phase: str
    code: int
    """Exit code of the launcher."""
    status: str
    """Of result.json; "" = none was written."""
    resumed_at: int
    """Step of the checkpoint that the next start went on from; 0 = none."""
    recovery_s: float
    """From the next start to its first new step; 0 = it had none left to do, or was struck in a phase itself."""


@dataclass
class Case:
    """A run that is killed again and again."""

    name: str
    kills: list[Kill] = field(default_factory=list)
    hangs: int = 0
    refused: int = 0
    """Starts refused because processes of the one before still held the run folder."""
    failed_starts: int = 0
    """Starts that ended before a new step though nothing had struck them: what is on disk could not be gone on from."""
    wrong_rows: int = 0
    wrong_losses: int = 0
    wrong_weights: int = 0
    wrong_refusals: int = 0
    """Pairs of starts of which not exactly one was refused."""
    unmet: int = 0
    """Strikes in a phase that a whole run did not come to."""
    flipped_metrics: int = 0
    """Bits of metrics.jsonl that flipped since the run was begun: each takes a line with it, or two, or a figure."""
    completed: bool = False

    @property
    def right(self) -> bool:
        """Nothing was lost, repeated, changed or stuck."""
        return self.completed and not any(getattr(self, name) for name in WRONG)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(case_names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    dealt = deal(arguments.seed)
    for name in arguments.only:
        shutil.rmtree(WORK / name, ignore_errors=True)
        case = run_case(name, WORK / name, strikes=dealt[name], seed=arguments.seed)
        show(case)
        write_results(case, arguments.seed)
        if case.right:
            shutil.rmtree(WORK / name)
    stored = json.loads(RESULTS.read_text())
    return 1 if stored["lost_runs"] or any(stored[name] for name in WRONG) else 0


def case_names() -> Iterator[str]:
    """strategy-data-trains of every case, and of each strategy one with changing numbers of processes."""
    yield from ("-".join(parts) for parts in itertools.product(STRATEGIES, DATA, TRAINS))
    yield from (f"{strategy}-map-full-changing" for strategy in STRATEGIES)


def deal(seed: int) -> dict[str, list[tuple[str, str]]]:
    """The strikes of each case as (phase, fault), in the order of a run.

    Every fault in every phase, over the cases; and where the number of processes changes, every fault while resuming.
    """
    draw = random.Random(seed)
    same = [name for name in case_names() if not changing(name)]
    others = [name for name in case_names() if changing(name)]
    dealt: dict[str, list[tuple[str, str]]] = {name: [] for name in case_names()}
    for names, phases in ((same, tuple(PHASES)), (others, ("resuming",))):
        pairs = shuffled(draw, tuple(itertools.product(phases, FAULTS)))
        for pair, name in zip(pairs, itertools.cycle(names), strict=False):
            dealt[name].append(pair)
    order = list(PHASES)
    return {name: sorted(pairs, key=lambda pair: order.index(pair[0])) for name, pairs in dealt.items()}


def run_case(
    name: str,
    work: Path,
    *,
    strikes: list[tuple[str, str]],
    seed: int,
    num_steps: int = STEPS,
    start_quickly: Callable[..., subprocess.Popen] | None = None,
) -> Case:
    """The uninterrupted run, then the same one with the strikes, and the comparison of the two.

    `start_quickly` is `start` in another way, for the starts to which it is all one (SAME_HOWEVER_STARTED).
    """
    starting = start_quickly or start
    draw = random.Random(f"{seed}/{name}")
    work.mkdir(parents=True)
    config = settings(name, work, num_steps=num_steps, phases={phase for phase, _ in strikes})
    reference = work / "reference"
    log = work / "reference.log"
    code = wait_to_end(starting(config, reference, log, strategy=name.split("-")[0]), Case(name))
    assert code == 0, f"the uninterrupted run failed; see {log}"
    with small_disk(work / "disk", size_bytes=DISK_BYTES) as disk:
        return Play(Case(name), config, reference, disk, draw, work, starting).to_the_end(strikes)


@dataclass
class Play:
    """Starts, strikes, and starts again; at last lets the run complete.

    A run that completes before is compared and begun anew.
    """

    case: Case
    config: dict[str, Any]
    reference: Path
    disk: SmallDisk
    draw: random.Random
    work: Path
    start_quickly: Callable[..., subprocess.Popen]
    environment: dict[str, str] = field(default_factory=dict)
    """Of the next start."""
    struck: dict[str, Any] | None = None
    """The last strike, until the start after it tells how the run went on."""
    starts: int = 0
    process: subprocess.Popen = None  # type: ignore[assignment]
    """The launcher of the present start."""
    log: Path = None  # type: ignore[assignment]
    mark: Path = None  # type: ignore[assignment]
    """What the rank that stands still has written."""

    @property
    def folder(self) -> Path:
        """Of the run that is struck."""
        return self.disk.folder / "run"

    @property
    def cache(self) -> Path:
        """Of prepared data, which lies on no small disk."""
        return Path(self.config["data"]["cache_dir"])

    def to_the_end(self, strikes: list[tuple[str, str]]) -> Case:
        """All strikes, and a start without."""
        left = list(strikes)
        while left and self.failures <= len(strikes):
            phase, fault = left[0]
            if phase in ANEW:
                self.begin_anew()
            if self.strike(phase, fault):
                left.pop(0)
        if not left:
            self.case.completed = self.complete()
        return self.case

    @property
    def failures(self) -> int:
        """Starts that ended though nothing had struck them."""
        return self.case.failed_starts + self.case.refused

    def strike(self, phase: str, fault: str) -> bool:
        """One start, struck so. False = not yet: it ended before, or the fault came too late."""
        if phase == "resuming" and not checkpoints(self.folder):
            self.get_a_checkpoint()
        before = newest_step(self.folder)
        mark = self.work / f"point-{self.starts:03d}"
        wish = {"FTSCALE_POINT": json.dumps(self.point(phase, mark))} if PHASES[phase] else {}
        waiting_s = IMPATIENCE_S if FAULTS[fault] is stop_rank else PATIENCE_S
        begun = self.start(fault, waiting_s=waiting_s, environment=wish)
        first = None
        if wish:
            wait_until(mark.exists, self.process)
        else:
            first = wait_for_step(self.process, self.folder, after=before)
        ended = self.process.poll() is not None and not mark.exists()
        if ended and not self.see_the_end():
            return False
        self.tell_of_the_last(first and first - begun)
        if ended:  # the phase is behind it, or in a whole run never came
            unmet = bool(wish) and before < 0
            self.case.unmet += unmet
            return unmet
        late = self.draw.uniform(0.0, LATE_S) if self.draw.random() < 0.5 else 0.0
        if not wish:  # anywhere in the steps that are left, evaluations and saves included
            time.sleep(self.draw.uniform(0.0, LATER_S * self.config["train"]["max_steps"] / STEPS))
        at = newest_step(self.folder)
        code = self.let_strike(fault, mark, late=late)
        MENDS.get(fault, lambda _: None)(self)
        if status(self.folder) == "completed":
            self.compare()
            if not wish and fault not in BEARABLE:  # it was quicker than the fault
                return False
            self.case.kills.append(Kill(fault, at, phase, code, "completed", resumed_at=0, recovery_s=0.0))
            return True
        metrics = content_of(self.folder / "metrics.jsonl")
        DAMAGES.get(fault, lambda _: None)(self)
        self.case.flipped_metrics += content_of(self.folder / "metrics.jsonl") != metrics
        self.struck = {"fault": fault, "at_step": at, "phase": phase, "code": code, "status": status(self.folder)}
        return True

    def get_a_checkpoint(self) -> None:
        """By a start that is killed when it has one."""
        self.start()
        wait_until(lambda: bool(checkpoints(self.folder)), self.process)
        kill_all(self)
        wait_to_end(self.process, self.case)

    def point(self, phase: str, mark: Path) -> dict[str, Any]:
        """What one rank stands still at."""
        wish = {name: value for name, value in PHASES[phase].items() if name != "most"}
        rank = None if phase in BY_ANY else self.draw.randrange(PROCESSES)
        if phase in BY_RANK_0 or changing(self.case.name):
            rank = 0
        return {**wish, "rank": rank, "number": self.draw.randint(1, PHASES[phase]["most"]), "mark": str(mark)}

    def let_strike(self, fault: str, mark: Path, *, late: float) -> int:
        """The fault, and the start's end; who stands still goes on when the fault is there, or a little before it."""
        self.mark = mark
        if late:
            self.let_go()
            time.sleep(late)
        striking = threading.Thread(target=self.apply, args=(FAULTS[fault],))
        striking.start()
        striking.join(timeout=1.0)  # some faults last until the run has ended
        self.let_go()
        striking.join()
        return wait_to_end(self.process, self.case)

    def let_go(self) -> None:
        """Who stands still goes on."""
        self.mark.with_suffix(".go").touch()

    def apply(self, fault: Fault) -> None:
        self.environment = fault(self) or {}

    def start(
        self, fault: str = "", *, waiting_s: float = PATIENCE_S, environment: dict[str, str] | None = None
    ) -> float:
        """A start of the run, which goes on where it stopped and will be struck so; returns when."""
        variables = {**self.environment, **(environment or {})}
        self.environment = {}
        self.log = self.work / f"start-{self.starts:03d}.log"
        self.starts += 1
        begun = time.monotonic()
        self.process = self.another(self.log, fault, waiting_s=waiting_s, environment=variables)
        return begun

    def another(
        self,
        log: Path,
        fault: str = "",
        *,
        waiting_s: float = PATIENCE_S,
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen:
        """The same, beside the one that is running."""
        count = self.draw.choice(CHANGING) if changing(self.case.name) else PROCESSES
        quickly = fault in SAME_HOWEVER_STARTED and not environment
        return (self.start_quickly if quickly else start)(
            {**self.config, "distributed": {"timeout_s": waiting_s}},
            self.folder,
            log,
            strategy=self.case.name.split("-")[0],
            processes=count,
            environment=environment,
        )

    def tell_of_the_last(self, recovery_s: float | None) -> None:
        """How the run went on after the last strike."""
        if self.struck is not None:
            recovered = round(recovery_s or 0.0, 2)
            self.case.kills.append(Kill(**self.struck, resumed_at=resumed_step(self.log), recovery_s=recovered))
            self.struck = None

    def see_the_end(self) -> bool:
        """Of a start that nothing kept from it: completed, and compared; or refused, or failed."""
        code = wait_to_end(self.process, self.case)
        if status(self.folder) == "completed" and code == 0:
            self.compare()
            return True
        if "is in use by" in self.log.read_text():  # by processes of the start before that are still leaving
            self.case.refused += 1
        else:
            self.case.failed_starts += 1
        return False

    def compare(self) -> None:
        """A run that is completed with the uninterrupted one; then it makes room for the next."""
        compare(self.case, self.reference, self.folder, num_steps=self.config["train"]["max_steps"])
        self.case.flipped_metrics = 0
        shutil.rmtree(self.folder)

    def complete(self) -> bool:
        """The run goes on to its end, undisturbed."""
        tries = 3
        while tries:
            before = newest_step(self.folder)
            begun = self.start()
            first = wait_for_step(self.process, self.folder, after=before)
            if self.see_the_end():
                self.tell_of_the_last(first and first - begun)
                return True
            tries -= 1
        return False

    def begin_anew(self) -> None:
        """Without a run and prepared data; a run that is under way comes to its end before."""
        if self.folder.exists():
            self.complete()
        shutil.rmtree(self.cache, ignore_errors=True)


# ---------------------------------------------------------------- faults

Fault = Callable[[Play], "dict[str, str] | None"]


def kill_rank(play: Play) -> None:
    """SIGKILL of one rank."""
    send(play.draw.choice(ranks(play.process) or [play.process.pid]), signal.SIGKILL)


def kill_all(play: Play) -> None:
    """SIGKILL of the launcher and of all ranks."""
    for number in [play.process.pid, *ranks(play.process)]:
        send(number, signal.SIGKILL)


def kill_launcher(play: Play) -> None:
    """SIGKILL of the launcher: its ranks are on their own, and must not go on for ever."""
    left = ranks(play.process)
    send(play.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + START_LIMIT_S
    while any(map(alive, left)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for number in left:
        if alive(number):
            send(number, signal.SIGKILL)
            raise RuntimeError("a rank outlived its launcher")


def term_skewed(play: Play) -> None:
    """SIGTERM to each rank by itself, up to 5 s apart."""
    for number in shuffled(play.draw, tuple(ranks(play.process))):
        send(number, signal.SIGTERM)
        time.sleep(play.draw.uniform(0.0, 5.0))


def term_one(play: Play) -> None:
    """SIGUSR1 or SIGINT to one rank alone."""
    send(play.draw.choice(ranks(play.process) or [play.process.pid]), play.draw.choice([signal.SIGUSR1, signal.SIGINT]))


def term_launcher(play: Play) -> None:
    """SIGTERM to the launcher, which hands it on."""
    send(play.process.pid, signal.SIGTERM)


def stop_rank(play: Play) -> None:
    """SIGSTOP of one rank for longer than the time-out of a collective."""
    stopped = play.draw.choice(ranks(play.process) or [play.process.pid])
    send(stopped, signal.SIGSTOP)
    deadline = time.monotonic() + START_LIMIT_S
    while play.process.poll() is None and alive(stopped) and time.monotonic() < deadline:
        time.sleep(0.2)
        if time.monotonic() > deadline - START_LIMIT_S + 3 * IMPATIENCE_S:
            send(stopped, signal.SIGCONT)  # long after the time-out: whoever holds it back may go on


def fill_disk(play: Play) -> None:
    """The disk is full from now on, until the run has ended."""
    play.disk.fill(but=play.draw.randrange(2**16))


def back_in_time(play: Play) -> dict[str, str]:
    """All are killed, and Python's clock is a day behind at the next start."""
    kill_all(play)
    place = play.work / "clock"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text("import time\n\nclock = time.time\ntime.time = lambda: clock() - 86_400\n")
    return {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}


def hang_up_one(play: Play) -> None:
    """SIGHUP to one rank alone."""
    send(play.draw.choice(ranks(play.process) or [play.process.pid]), signal.SIGHUP)


def hang_up(play: Play) -> None:
    """SIGHUP to the launcher and all ranks, as of a terminal that is closed."""
    for number in [play.process.pid, *ranks(play.process)]:
        send(number, signal.SIGHUP)


def make_read_only(play: Play) -> None:
    """The disk can be read only from now on, until the run has ended."""
    play.disk.make_read_only()


def slow_down(play: Play) -> None:
    """The disk lets all wait that write, for seconds."""
    play.disk.freeze(play.draw.uniform(*FROZEN_S))


def start_another(play: Play) -> None:
    """The run is started a second time meanwhile: one is refused or finds nothing to do, the other does not notice."""
    log = play.log.with_suffix(".second.log")
    second = play.another(log)
    play.let_go()
    codes = [wait_to_end(second, play.case), wait_to_end(play.process, play.case)]
    told = [path.read_text() for path in (log, play.log)]
    refused = sum("is in use by" in text or "already holds a run" in text for text in told)  # the later one, if slow
    waited = sum("nothing to do" in text for text in told)  # until the other had ended
    play.case.wrong_refusals += refused + waited != 1 or codes.count(0) != 1 + waited


def free_disk(play: Play) -> None:
    play.disk.free()


def mend_disk(play: Play) -> None:
    play.disk.mend()


def truncate(play: Play) -> None:
    """A file of the newest checkpoint loses its end."""
    if path := file_of_newest(play):
        os.truncate(path, path.stat().st_size // 2)


def flip(play: Play) -> None:
    """A bit of a file of the run folder flips: of the newest checkpoint, or of the run's own files."""
    if path := file_of_newest(play, every=True):
        content = bytearray(path.read_bytes())
        content[play.draw.randrange(len(content))] ^= 1 << play.draw.randrange(8)
        path.write_bytes(content)


def remove(play: Play) -> None:
    """A file of the newest checkpoint is gone."""
    if path := file_of_newest(play):
        path.unlink()


def exchange_manifest(play: Play) -> None:
    """The newest checkpoint has the manifest of another run."""
    if found := checkpoints(play.folder):
        path = found[-1] / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "another"}))


FAULTS: dict[str, Fault] = {
    "kill one rank": kill_rank,
    "kill all": kill_all,
    "kill the launcher": kill_launcher,
    "SIGTERM skewed": term_skewed,
    "SIGUSR1 or SIGINT to one rank": term_one,
    "SIGTERM to the launcher": term_launcher,
    "SIGSTOP of one rank": stop_rank,
    "full disk": fill_disk,
    "truncated file": kill_all,
    "flipped bit": kill_all,
    "removed file": kill_all,
    "manifest of another run": kill_all,
    "clock set back": back_in_time,
    "SIGHUP to one rank": hang_up_one,
    "SIGHUP to all": hang_up,
    "read-only disk": make_read_only,
    "slow disk": slow_down,
    "two starts at once": start_another,
}
SAME_HOWEVER_STARTED = ("", "kill all", "full disk", "truncated file", "flipped bit", "removed file")
SAME_HOWEVER_STARTED += ("manifest of another run", "clock set back")
"""What has nothing to do with a launcher or a signal; "" = no fault."""
BEARABLE = ("slow disk", "two starts at once")
MENDS: dict[str, Callable[[Play], None]] = {"full disk": free_disk, "read-only disk": mend_disk}
DAMAGES: dict[str, Callable[[Play], None]] = {
    "truncated file": truncate,
    "flipped bit": flip,
    "removed file": remove,
    "manifest of another run": exchange_manifest,
}


# ---------------------------------------------------------------- runs


def settings(name: str, work: Path, *, num_steps: int, phases: set[str]) -> dict[str, Any]:
    """A Llama of 260,032 parameters on captions, with evaluations and saves between the steps.

    What is done in one of the phases alone, and takes long, is done where it is struck there.
    """
    _, data, trains = name.split("-")[:3]
    captions = SHARED / "data/translation/multi30k_de-en"
    config: dict[str, Any] = {
        "task": "causal_lm",
        "model": str(SHARED / "weights/stories260K"),
        "data": {
            "train": [
                {"path": str(captions / "train.en.gz"), "format": "text", "limit": 1400},
                {"path": str(captions / "val.en.gz"), "format": "text", "weight": 2.0},
            ],
            "eval": {"path": str(captions / "val.en.gz"), "format": "text", "limit": 24},
            "cache_dir": str(work / "cache"),
            "streaming": data == "stream",
            "shuffle_buffer": 100,
            "prepare_workers": 2 if "preparing data" in phases else 1,
        },
        "batch": {"global_size": 12, "micro_size": 3},
        "optimizer": {
            "name": "adamw_8bit" if trains == "adamw_8bit" else "adamw",
            "lr": 1e-3,
            # sums of another order differ in their last digits, which a smaller one makes steps of the length of lr
            **({"eps": 1e-3} if changing(name) else {}),
        },
        "train": {"max_steps": num_steps, "log_every": 1},
        "evaluation": {"every": 10, "micro_size": 4},
        "checkpoint": {"every": 4, "prove": "final" if "proving" in phases else "never", "async": trains == "full"},
        "distributed": {"timeout_s": PATIENCE_S},
    }
    if trains == "lora":  # with dropout: random states count
        config["adapter"] = {"method": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
    return config


def start(
    config: dict[str, Any],
    folder: Path,
    log: Path,
    *,
    strategy: str,
    processes: int = PROCESSES,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen:
    """torchrun with the run, which goes on where it stopped."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "benchmarks.struck" if "FTSCALE_POINT" in (environment or {}) else "ftscale"]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        **(environment or {}),
    }
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, *command, *arguments(config, folder, log, strategy=strategy)],
            stdout=output,
            stderr=output,
            env=variables,
            cwd=ROOT,
            start_new_session=True,
        )


def arguments(config: dict[str, Any], folder: Path, log: Path, *, strategy: str) -> list[str]:
    """Of ftscale, for the run or for going on with it; the settings are written beside the log."""
    from ftscale.run.folder import holds_run

    file = log.with_suffix(".json")
    file.write_text(json.dumps({**config, "run_folder": str(folder)}))
    return ["train", str(file), f"distributed.strategy={strategy}", *["--resume"] * holds_run(folder)]


def wait_for_step(process: subprocess.Popen, folder: Path, *, after: int) -> float | None:
    """When metrics.jsonl had a step beyond `after`; None = the run ended before."""
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if newest_step(folder) > max(after, 0):
            return time.monotonic()
        time.sleep(0.05)
    return None


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until it holds, or the process has ended, or hangs."""
    deadline = time.monotonic() + START_LIMIT_S
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def wait_to_end(process: subprocess.Popen, case: Case) -> int:
    """The exit code; a run that does not end is a hang and is ended."""
    try:
        return process.wait(timeout=START_LIMIT_S)
    except subprocess.TimeoutExpired:
        case.hangs += 1
        for number in [process.pid, *ranks(process)]:
            send(number, signal.SIGKILL)
        return process.wait()


def compare(case: Case, reference: Path, victim: Path, *, num_steps: int) -> None:
    """Rows and losses of each step, and the weights of the model of a completed run."""
    tolerance = 1e-5 if changing(case.name) else 0.0

    def near(one: float, other: float) -> bool:
        return abs(one - other) <= tolerance * abs(other)

    expected, found = {line["step"]: line for line in steps(reference)}, steps(victim)
    numbers = [line["step"] for line in found]
    numbered = set(range(1, num_steps + 1))
    lost, unknown = numbered - set(numbers), set(numbers) - numbered
    case.wrong_rows += max(len(lost) - 2 * case.flipped_metrics, 0) + len(unknown) + len(numbers) - len(set(numbers))
    pairs = [(ours, expected.get(ours["step"], ours)) for ours in found]
    rows = sum(ours.get("rows_hash") != theirs["rows_hash"] for ours, theirs in pairs)
    losses = sum(not near(ours.get("loss", 0.0), theirs["loss"]) for ours, theirs in pairs)
    case.wrong_rows += max(rows - case.flipped_metrics, 0)
    case.wrong_losses += max(losses - case.flipped_metrics, 0)
    [name] = [path.name for path in (reference / "model").glob("*model.safetensors")]
    weights, ours = load_file(reference / "model" / name), load_file(victim / "model" / name)
    case.wrong_weights += len(weights.keys() ^ ours.keys()) + sum(
        float((weights[key] - ours[key]).abs().max()) > tolerance * float(weights[key].abs().max())
        for key in weights.keys() & ours.keys()
    )


# ---------------------------------------------------------------- small parts


def changing(name: str) -> bool:
    """Whether each start of the case has another number of processes."""
    return name.endswith("-changing")


def ranks(process: subprocess.Popen) -> list[int]:
    """Process ids of the launcher's children."""
    try:
        return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def send(number: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(number, what)


def alive(number: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that tell of optimizer steps; torn and flipped ones are left out."""
    from ftscale.base.sealed import read_lines

    lines, _ = read_lines(folder / "metrics.jsonl")
    return [line for line in lines if line.get("kind") == "train" and isinstance(line.get("step"), int)]


def content_of(path: Path) -> bytes:
    """b"" where there is no such file."""
    return path.read_bytes() if path.is_file() else b""


def newest_step(folder: Path) -> int:
    return max((line["step"] for line in steps(folder)), default=-1)


def resumed_step(log: Path) -> int:
    """The step that the start of this log went on from; 0 = it began anew."""
    found = re.findall(r"resumed from \S+ at step (\d+)", log.read_text())
    return int(found[-1]) if found else 0


def status(folder: Path) -> str:
    with suppress(FileNotFoundError, ValueError, KeyError):  # not there, or flipped
        return json.loads((folder / "result.json").read_bytes())["status"]
    return ""


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def file_of_newest(play: Play, *, every: bool = False) -> Path | None:
    """A file of tensors in the newest checkpoint; `every`: any file there, of the run's own, or of prepared data."""
    found = checkpoints(play.folder)
    if every:
        own = [path for path in play.folder.rglob("*") if "checkpoints" not in path.relative_to(play.folder).parts]
        newest = list(found[-1].rglob("*")) if found else []
        groups = [existing(paths) for paths in (own, newest, play.cache.rglob("*"))]
        groups = [files for files in groups if files]
        return play.draw.choice(play.draw.choice(groups)) if groups else None
    files = [path for path in existing(found[-1].rglob("*") if found else ()) if path.suffix in (".pt", ".safetensors")]
    return play.draw.choice(files) if files else None


def existing(paths: Iterable[Path]) -> list[Path]:
    """Those that are files with something in them, in order."""
    return sorted(path for path in paths if path.is_file() and path.stat().st_size)


def shuffled(draw: random.Random, values: tuple[Any, ...]) -> list[Any]:
    return draw.sample(values, len(values))


def show(case: Case) -> None:
    """A line for each kill, and one for the case."""
    for kill in case.kills:
        print(
            f"  {kill.fault:32} {kill.phase:24} at step {kill.at_step:3}  exit {kill.code:4}  {kill.status:10} "
            f"went on at {kill.resumed_at:3}  first new step after {kill.recovery_s:5.1f} s"
        )
    verdict = "as if nothing had happened" if case.right else "WRONG"
    print(f"{case.name}: {len(case.kills)} kills, {case.hangs} hangs, {verdict}", flush=True)


def write_results(case: Case, seed: int) -> None:
    """This case, and those that are in the file already."""
    from ftscale.run.folder import versions

    command = f"python benchmarks/chaos.py --seed {seed} --only {case.name}"
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    runs = stored.get("runs", {}) | {case.name: {**asdict(case), "command": command, "versions": versions()}}
    every = [kill for run in runs.values() for kill in run["kills"]]
    recoveries = [kill["recovery_s"] for kill in every if kill["recovery_s"]]
    sums = {name: sum(run.get(name, 0) for run in runs.values()) for name in WRONG}
    record = {
        "kills": len(every),
        "cases": len(runs),
        "lost_runs": sum(not run["completed"] for run in runs.values()),
        **sums,
        "recovery_s": {"median": median(recoveries), "max": max(recoveries)} if recoveries else {},
        "by_fault": {fault: sum(kill["fault"] == fault for kill in every) for fault in FAULTS},
        "by_phase": {phase: sum(kill["phase"] == phase for kill in every) for phase in PHASES},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, CPU, shared with other work",
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
