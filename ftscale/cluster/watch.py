"""Looking at a submitted run, and ending it: status, logs, cancel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.base.files import open_to_append
from ftscale.base.logs import LOGS
from ftscale.cluster import slurm
from ftscale.cluster.records import Event, Records, checkpoint_step, read_json, read_result, train_lines
from ftscale.run.folder import current_folder

FOLLOW_S = 0.5
RECENT_STEPS = 50  # whose pace tells when the run will be done
SHOWN_RESTARTS = 10


def status_lines(run_folder: Path) -> list[str]:
    """What squeue, scontrol (or sacct) and the run itself know, as lines of text; members of an array below.

    Raises UserError: the folder was never submitted.
    """
    records = _submitted(run_folder)
    lines = [f"{run_folder}: {_run_line(records)}"]
    for job in records.jobs():
        lines.append(_job_line(job, run_folder))
    ends = records.events("end")
    if ends:
        lines.append(f"starts: {len(records.events('start'))}")
    lines += [
        f"  {_clock(end['time'])} job {end['job']}.{end['restart']}: {_end_line(end)}" for end in ends[-SHOWN_RESTARTS:]
    ]
    for member in _members(run_folder):
        lines += ["", *status_lines(member)]
    return lines


def log_file(run_folder: Path, *, rank: int | None = None) -> Path:
    """The log of the newest job, or of one rank. Raises UserError: there is none yet."""
    if rank is not None:
        path = current_folder(run_folder) / LOGS / f"rank-{rank:05d}.log"
        if not path.is_file():
            raise UserError(f"--rank {rank}: {path} does not exist; the ranks' logs are there from the first step on.")
        return path
    records = _submitted(run_folder)
    logs = sorted(records.folder.glob("job-*.log"), key=lambda path: path.stat().st_mtime)
    job = records.jobs()[-1] if records.jobs() else ""
    by_hand = Path(slurm.job_fields(job).get("StdOut", "")) if job and not logs else None
    if by_hand is not None and by_hand.is_file():
        return by_hand
    if not logs:
        raise UserError(f"{run_folder} has no log yet; ftscale status {run_folder} says what its job waits for.")
    return logs[-1]


def follow(run_folder: Path, *, rank: int | None = None) -> Iterator[str]:
    """The text of the `log_file` and what comes to it, then the log of the next job, until no job of the run is left.

    Raises UserError: as `log_file`.
    """
    records, path, newest = Records(run_folder), None, log_file(run_folder, rank=rank)
    while newest != path:
        path = newest
        with path.open(encoding="utf-8", errors="replace") as file:
            over = False
            while not over and newest == path:
                over = all(slurm.job_fields(job).get("JobState", "COMPLETED") in slurm.ENDED for job in records.jobs())
                newest = log_file(run_folder, rank=rank)
                while text := file.read():
                    yield text
                time.sleep(0 if over else FOLLOW_S)


def cancel(run_folder: Path, *, now: bool = False) -> list[str]:
    """End the run's jobs: after a checkpoint, or at once with `now`; returns what was done.

    Raises UserError: it has no job.
    """
    records = _submitted(run_folder)
    states = {job: slurm.job_fields(job).get("JobState", "COMPLETED") for job in records.jobs()}
    alive = [job for job, state in states.items() if state not in slurm.ENDED]
    if not alive:
        raise UserError(f"{run_folder} has no job that is waiting or running; ftscale status {run_folder} says more.")
    running = [job for job in alive if states[job] == "RUNNING" and not now]
    for folder in (run_folder, *_members(run_folder)):
        Records(folder).folder.mkdir(parents=True, exist_ok=True)
        open_to_append(Records(folder).cancel_mark).close()
    said = []
    if waiting := [job for job in alive if job not in running]:
        slurm.call("scancel", *waiting)
        said.append(f"cancelled {', '.join(waiting)}")
    for job in running:
        slurm.call("scancel", "--batch", "--signal=USR1", job)
        said.append(f"job {job} ends after a checkpoint; ftscale status {run_folder} shows when")
    return said


def _submitted(run_folder: Path) -> Records:
    records = Records(run_folder)
    if not records.events("submit", "start"):
        raise UserError(
            f"{run_folder} has no slurm/history.jsonl: no job was submitted for it, or another folder is it."
        )
    return records


def _members(run_folder: Path) -> list[Path]:
    return sorted(path.parent.parent for path in run_folder.glob("*/slurm/history.jsonl"))


def _run_line(records: Records) -> str:
    """How far the run itself is: by its metrics."""
    folder = records.run_folder
    if result := read_result(folder):
        numbers = {name: value for name, value in result["metrics"].items() if isinstance(value, (int, float))}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        return f"{result['status']} at step {result.get('steps', '?')}  {shown}"
    trained = current_folder(folder)
    stage = "" if trained == folder else f"stage {trained.name}: "
    rows = train_lines(trained)
    if not rows:
        return f"{stage}no step yet"
    total = num_steps(trained)
    text = f"{stage}step {rows[-1]['step']}{f'/{total}' if total else ''}  loss {float(rows[-1]['loss']):.4g}"
    text += f"  checkpoint of step {checkpoint_step(trained)}"
    if total and (left := _seconds_left(rows, total)) is not None:
        text += f"  {duration(left)} of training left"
    return text


def _seconds_left(rows: list[Event], total: int) -> float | None:
    recent = rows[-RECENT_STEPS:]
    steps = recent[-1]["step"] - recent[0]["step"]
    seconds = recent[-1]["time_s"] - recent[0]["time_s"]
    return (total - recent[-1]["step"]) * seconds / steps if steps > 0 and seconds > 0 else None


def _job_line(job: str, run_folder: Path) -> str:
    fields = slurm.job_fields(job)
    if not fields:
        return f"job {job}: {_accounted(job) or 'the controller knows it no more'}"
    state, reason = fields.get("JobState", "?"), fields.get("Reason", "None")
    text = f"job {job}: {state}"
    if state == "PENDING":
        start = fields.get("StartTime", "Unknown")
        text += f" ({reason})" if start == "Unknown" else f" ({reason}, may start {start})"
        excluded = fields.get("ExcNodeList", "(null)")
        return text + (f"  without {excluded}" if excluded != "(null)" else "")
    if state == "RUNNING":
        used, limit = slurm.seconds(fields["RunTime"]), slurm.seconds(fields["TimeLimit"])
        text += f" on {fields['NodeList']} for {duration(used or 0)}"
        if limit is not None:
            left = limit - (used or 0)
            text += f", {duration(left)} to its time limit"
            trained = current_folder(run_folder)
            rows, total = train_lines(trained), num_steps(trained)
            needed = _seconds_left(rows, total) if rows and total else None
            if needed is not None and needed > left:
                text += ": not enough, it will save and go on in another start"
        return text
    return text + (f" ({reason})" if reason != "None" else "") + f"  exit code {fields.get('ExitCode', '?')}"


def _accounted(job: str) -> str:
    """What sacct says, on sites with accounting."""
    try:
        lines = slurm.call("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode,End").splitlines()
    except UserError:
        return ""
    return "  ".join(lines[-1].split("|")) if lines else ""


def _end_line(end: Event) -> str:
    return f"{end['reason']} (step {end['step']}, {end['progress']:+d})"


def num_steps(folder: Path) -> int:
    """Return the optimizer steps of a run, or of a stage; 0 = not known."""
    total = read_json(folder / "run.json").get("num_steps")
    return total if isinstance(total, int) else 0


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}h{rest // 60:02d}m" if hours else f"{rest // 60}m{rest % 60:02d}s"
