"""Kills real runs at random instants, starts them again until they complete, and compares with the uninterrupted run.

    python benchmarks/chaos.py [--kills 224] [--seed 0] [--only ddp-map-full ...]

A case is a strategy, a kind of data and what trains, on 2 processes on this machine; needs ../shared. Every start ends
by itself or counts as a hang. What must hold at the end of a case: the rows of each optimizer step, its loss and the
final weights are those of the uninterrupted run, bit for bit; in the `changing` cases, where each start has another
number of processes, the rows exactly, losses and weights to 1e-5. Results go into benchmarks/results/chaos.json.
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
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "benchmarks/results/chaos.json"
WORK = ROOT / "runs/chaos"

STEPS = 120
PROCESSES = 2
CHANGING = (1, 2, 3)  # numbers of processes to draw from
START_LIMIT_S = 1200.0  # a start that has not ended by then hangs: longer than any of a slow machine
PATIENCE_S = 300.0  # distributed.timeout_s: ranks may be that far apart on a busy machine
IMPATIENCE_S = 60.0  # the same where a rank will be stopped, which costs that long
DISK_BYTES = 48 * 2**20  # of the small file system that the run folder lies on

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
DATA = ("map", "stream")
TRAINS = ("full", "lora", "adamw_8bit")

WRONG = ("hangs", "failed_starts", "wrong_rows", "wrong_losses", "wrong_weights")


@dataclass(frozen=True)
class Kill:
    """One fault, and what the run did about it."""

    fault: str
    at_step: int
    """Steps of metrics.jsonl when it struck; -1 = before the first."""
    phase: str
    """"start" where it struck before the first new step, else "training"."""
    code: int
    """Exit code of the launcher."""
    status: str
    """Of result.json; "" = none was written."""
    resumed_at: int
    """Step of the checkpoint that the next start went on from; 0 = none."""
    recovery_s: float
    """From the next start to its first new step; 0 = it had none left to do."""


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
    parser.add_argument("--kills", type=int, default=224, help="of all cases together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    each = -(-arguments.kills // len(names))
    cases = []
    for name in arguments.only:
        cases.append(run_case(name, WORK / name, kills=each, seed=arguments.seed))
        show(cases[-1])
        write_results(cases, arguments)
        if cases[-1].right:
            shutil.rmtree(WORK / name)
    return 0 if all(case.right for case in cases) else 1


def case_names() -> Iterator[str]:
    """strategy-data-trains of every case, and of each strategy one with changing numbers of processes."""
    yield from ("-".join(parts) for parts in itertools.product(STRATEGIES, DATA, TRAINS))
    yield from (f"{strategy}-map-full-changing" for strategy in STRATEGIES)


def run_case(
    name: str,
    work: Path,
    *,
    kills: int,
    seed: int,
    faults: tuple[str, ...] | None = None,
    num_steps: int = STEPS,
    uninterrupted: Callable[[dict[str, Any], Path, Path, str], None] | None = None,
) -> Case:
    """The uninterrupted run, then the same one with that many kills, and the comparison of the two.

    `uninterrupted(config, folder, log, strategy)` makes the first in another way than by a launcher.
    """
    draw = random.Random(f"{seed}/{name}")
    work.mkdir(parents=True)
    with small_disk(work / "disk") as disk:
        config = settings(name, work, num_steps=num_steps)
        reference, victim = work / "reference", disk / "run"
        (uninterrupted or run_undisturbed)(config, reference, work / "reference.log", name.split("-")[0])
        case = Case(name)
        drawn = list(itertools.islice(itertools.cycle(shuffled(draw, faults or tuple(FAULTS))), kills))
        play(case, config, reference, victim, drawn, draw=draw, work=work)
    return case


def run_undisturbed(config: dict[str, Any], folder: Path, log: Path, strategy: str) -> None:
    """To its end, by a launcher."""
    code = wait_to_end(start(config, folder, log, strategy=strategy), Case(folder.name))
    assert code == 0, f"the uninterrupted run failed; see {log}"


def play(
    case: Case,
    config: dict[str, Any],
    reference: Path,
    folder: Path,
    faults: list[str],
    *,
    draw: random.Random,
    work: Path,
) -> None:
    """Start, strike, start again; at last let it complete. A run that completes before is compared and begun anew."""
    strategy = case.name.split("-")[0]
    environment: dict[str, str] = {}
    struck: dict[str, Any] | None = None
    left = list(faults)
    starts = itertools.count()
    while True:
        before = newest_step(folder)
        log = work / f"start-{next(starts):03d}.log"
        begun = time.monotonic()
        count = draw.choice(CHANGING) if changing(case.name) else PROCESSES
        waiting = {"timeout_s": IMPATIENCE_S if left and FAULTS[left[0]] is stop_rank else PATIENCE_S}
        process = start(
            {**config, "distributed": waiting},
            folder,
            log,
            strategy=strategy,
            processes=count,
            environment=environment,
        )
        first = wait_for_step(process, folder, after=before)
        ended = process.poll() is not None
        if ended and status(folder) != "completed":  # though nothing has struck it
            if "is in use by" in log.read_text():  # by processes of the start before that are still leaving
                case.refused += 1
            else:
                case.failed_starts += 1
            if case.refused + case.failed_starts > len(faults):
                return
            continue
        if struck is not None:
            recovery = round(first - begun, 2) if first is not None else 0.0
            case.kills.append(Kill(**struck, resumed_at=resumed_step(log), recovery_s=recovery))
            struck, environment = None, {}
        if left and not ended:
            # anywhere in the steps that are left, evaluations and saves included; at times again before the first one
            early = draw.random() < 0.2
            if not early:
                time.sleep(draw.uniform(0.0, 2.5))
            at = newest_step(folder)
            environment = FAULTS[left[0]](process, folder, draw) or {}
        code = wait_to_end(process, case)
        if status(folder) == "completed":  # by itself, or before the fault reached it: that one strikes the next
            free_disk(folder, draw)
            compare(case, reference, folder, num_steps=config["train"]["max_steps"])
            case.flipped_metrics = 0
            if not left:  # nothing struck this start
                case.completed = code == 0
                return
            shutil.rmtree(folder)
            environment = {}
        elif left:
            fault, metrics = left.pop(0), content_of(folder / "metrics.jsonl")
            AFTER.get(fault, lambda *_: None)(folder, draw)
            case.flipped_metrics += content_of(folder / "metrics.jsonl") != metrics
            phase = "start" if early else "training"
            struck = {"fault": fault, "at_step": at, "phase": phase, "code": code, "status": status(folder)}
        else:
            return  # the last start, which nothing struck, did not complete


# ---------------------------------------------------------------- faults

Fault = Callable[[subprocess.Popen, Path, random.Random], "dict[str, str] | None"]


def kill_rank(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """SIGKILL of one rank."""
    send(draw.choice(ranks(process) or [process.pid]), signal.SIGKILL)


def kill_all(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """SIGKILL of the launcher and of all ranks."""
    for number in [process.pid, *ranks(process)]:
        send(number, signal.SIGKILL)


def kill_launcher(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """SIGKILL of the launcher: its ranks are on their own, and must not go on for ever."""
    left = ranks(process)
    send(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + START_LIMIT_S
    while any(map(alive, left)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for number in left:
        if alive(number):
            send(number, signal.SIGKILL)
            raise RuntimeError("a rank outlived its launcher")


def term_skewed(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """SIGTERM to each rank by itself, up to 5 s apart."""
    for number in shuffled(draw, tuple(ranks(process))):
        send(number, signal.SIGTERM)
        time.sleep(draw.uniform(0.0, 5.0))


def term_one(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """SIGUSR1 or SIGINT to one rank alone."""
    send(draw.choice(ranks(process) or [process.pid]), draw.choice([signal.SIGUSR1, signal.SIGINT]))


def term_launcher(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """SIGTERM to the launcher, which hands it on."""
    send(process.pid, signal.SIGTERM)


def stop_rank(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """SIGSTOP of one rank for longer than the time-out of a collective."""
    stopped = draw.choice(ranks(process) or [process.pid])
    send(stopped, signal.SIGSTOP)
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and alive(stopped) and time.monotonic() < deadline:
        time.sleep(0.2)
        if time.monotonic() > deadline - START_LIMIT_S + 3 * IMPATIENCE_S:
            send(stopped, signal.SIGCONT)  # long after the time-out: whoever holds it back may go on


def fill_disk(process: subprocess.Popen, folder: Path, draw: random.Random) -> None:
    """The disk is full from now on, until the run has ended."""
    free = shutil.disk_usage(folder.parent).free
    with suppress(OSError), (folder.parent / "filler").open("wb") as file:  # the run may be quicker and take the rest
        file.write(bytes(max(free - draw.randrange(2**16), 0)))


def back_in_time(process: subprocess.Popen, folder: Path, draw: random.Random) -> dict[str, str]:
    """All are killed, and Python's clock is a day behind at the next start."""
    kill_all(process, folder, draw)
    place = folder.parent.parent / "clock"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text("import time\n\nclock = time.time\ntime.time = lambda: clock() - 86_400\n")
    return {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}"}


def free_disk(folder: Path, draw: random.Random) -> None:
    (folder.parent / "filler").unlink(missing_ok=True)


def truncate(folder: Path, draw: random.Random) -> None:
    """A file of the newest checkpoint loses its end."""
    if path := file_of_newest(folder, draw):
        os.truncate(path, path.stat().st_size // 2)


def flip(folder: Path, draw: random.Random) -> None:
    """A bit of a file of the run folder flips: of the newest checkpoint, or of the run's own files."""
    if path := file_of_newest(folder, draw, every=True):
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)


def remove(folder: Path, draw: random.Random) -> None:
    """A file of the newest checkpoint is gone."""
    if path := file_of_newest(folder, draw):
        path.unlink()


def exchange_manifest(folder: Path, draw: random.Random) -> None:
    """The newest checkpoint has the manifest of another run."""
    if found := checkpoints(folder):
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
}
AFTER: dict[str, Callable[[Path, random.Random], None]] = {
    "full disk": free_disk,
    "truncated file": truncate,
    "flipped bit": flip,
    "removed file": remove,
    "manifest of another run": exchange_manifest,
}


# ---------------------------------------------------------------- runs


def settings(name: str, work: Path, *, num_steps: int) -> dict[str, Any]:
    """A Llama of 260,032 parameters on captions, with evaluations and saves between the steps."""
    _, data, trains = name.split("-")[:3]
    captions = SHARED / "data/translation/multi30k_de-en"
    config: dict[str, Any] = {
        "task": "causal_lm",
        "model": str(SHARED / "weights/stories260K"),
        "data": {
            "train": [
                {"path": str(captions / "train.en.gz"), "format": "text", "limit": 700},
                {"path": str(captions / "val.en.gz"), "format": "text", "weight": 2.0},
            ],
            "eval": {"path": str(captions / "val.en.gz"), "format": "text", "limit": 64},
            "cache_dir": str(work / "cache"),
            "streaming": data == "stream",
            "shuffle_buffer": 100,
        },
        "batch": {"global_size": 24, "micro_size": 2},
        "optimizer": {"name": "adamw_8bit" if trains == "adamw_8bit" else "adamw", "lr": 1e-3},
        "train": {"max_steps": num_steps, "log_every": 1},
        "evaluation": {"every": 10, "micro_size": 4},
        "checkpoint": {"every": 4, "prove": "never", "async": trains == "full"},
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
    from ftscale.run_folder import holds_run

    file = log.with_suffix(".json")
    file.write_text(json.dumps({**config, "run_folder": str(folder)}))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "ftscale"]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        **(environment or {}),
    }
    resume = ["--resume"] if holds_run(folder) else []
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, *command, "train", str(file), f"distributed.strategy={strategy}", *resume],
            stdout=output,
            stderr=output,
            env=variables,
            cwd=ROOT,
            start_new_session=True,
        )


def wait_for_step(process: subprocess.Popen, folder: Path, *, after: int) -> float | None:
    """When metrics.jsonl had a step beyond `after`; None = the run ended before."""
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        if newest_step(folder) > max(after, 0):
            return time.monotonic()
        time.sleep(0.05)
    return None


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


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES at `place`, in memory; a mere folder where mounting is not allowed."""
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise RuntimeError(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


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
    from ftscale.sealed import read_lines

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


def file_of_newest(folder: Path, draw: random.Random, *, every: bool = False) -> Path | None:
    """A file of tensors in the newest checkpoint; `every`: any file there, or as likely one of the run's own."""
    found = checkpoints(folder)
    if not found:
        return None
    own = draw.random() < 0.5
    where = [*folder.glob("*"), *folder.glob("logs/*")] if every and own else found[-1].rglob("*")
    files = sorted(path for path in where if path.is_file() and path.stat().st_size)
    if not every:
        files = [path for path in files if path.suffix in (".pt", ".safetensors")]
    return draw.choice(files) if files else None


def shuffled(draw: random.Random, values: tuple[Any, ...]) -> list[Any]:
    return draw.sample(values, len(values))


def show(case: Case) -> None:
    """A line for each kill, and one for the case."""
    for kill in case.kills:
        print(
            f"  {kill.fault:32} {kill.phase:8} at step {kill.at_step:3}  exit {kill.code:4}  {kill.status:10} "
            f"went on at {kill.resumed_at:3}  first new step after {kill.recovery_s:5.1f} s"
        )
    verdict = "as if nothing had happened" if case.right else "WRONG"
    print(f"{case.name}: {len(case.kills)} kills, {case.hangs} hangs, {verdict}", flush=True)


def write_results(cases: list[Case], arguments: argparse.Namespace) -> None:
    """These cases, and those that earlier calls have put into the file and this one has not run."""
    from ftscale.run_folder import versions

    command = f"python benchmarks/chaos.py --kills {arguments.kills} --seed {arguments.seed} --only {{name}}"
    stored = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    runs = stored.get("runs", {}) | {
        case.name: {**asdict(case), "command": command.format(name=case.name), "versions": versions()} for case in cases
    }
    every = [kill for run in runs.values() for kill in run["kills"]]
    recoveries = [kill["recovery_s"] for kill in every if kill["recovery_s"]]
    sums = {name: sum(run[name] for run in runs.values()) for name in WRONG}
    record = {
        "kills": len(every),
        "cases": len(runs),
        "lost_runs": sum(not run["completed"] for run in runs.values()),
        **sums,
        "recovery_s": {"median": median(recoveries), "max": max(recoveries)} if recoveries else {},
        "by_fault": {fault: sum(kill["fault"] == fault for kill in every) for fault in FAULTS},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, CPU, shared with other work",
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
