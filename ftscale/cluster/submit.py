"""`ftscale submit`: the run is checked here, its job script written into the run folder, and handed to sbatch."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftscale.base.errors import UserError, unknown_name
from ftscale.base.logs import log
from ftscale.base.resources import resource
from ftscale.base.sealed import write_text
from ftscale.base.startup import begin_work
from ftscale.checks import check_run
from ftscale.cluster import slurm
from ftscale.cluster.container import as_variable, bound_folders, container_problems, program
from ftscale.cluster.node import LAUNCHERS
from ftscale.cluster.outcome import FINISHED
from ftscale.cluster.records import Records, is_job, run_status
from ftscale.cluster.render import fill
from ftscale.cluster.site import Site, load_site
from ftscale.config import Config, write_config
from ftscale.precheck import read_config
from ftscale.run.folder import at_real_folder, check_run_folder, is_given_more

SCRIPT, RUN, RUNS = "job.sbatch", "run.yaml", "runs.txt"
"""Files in the run folder's slurm/: the job script, the resolved configuration, and an array's members."""
UNLIMITED = ("UNLIMITED", "infinite", "0")
START_S = 60.0  # that a job shorter than its last save would at least need


@dataclass(frozen=True)
class Request:
    """What `ftscale submit` was asked for, besides the run."""

    nodes: int = 1
    gpus_per_node: int | None = None
    """None = the site's."""
    processes: int = 0
    """Processes a node; 0 = its GPUs, or one."""
    launcher: str = "torchrun"
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    sbatch: tuple[str, ...] = ()
    """Further options, `key=value` or `key`."""
    array: str | None = None
    """Members of the array, e.g. 0-3 or 0-5%2; None = all at once."""
    seeds: int = 0
    """Members that differ in their seed; 0 = the run's own seed."""
    grid: tuple[str, ...] = ()
    """`setting=value,value`: one member for each combination."""
    chain: int = 0
    """Jobs in a row instead of requeues; 0 = requeue."""
    elastic: bool = False
    resume: bool = False
    plan: bool = True
    """Refuse a run that does not fit the site's GPUs, as far as a forecast can tell."""


@dataclass(frozen=True)
class Submission:
    """What was submitted: the ids of its jobs, and the file that their output goes to (%j, %A, %a: Slurm's)."""

    jobs: tuple[str, ...]
    log: Path
    script: str

    @property
    def told(self) -> str:
        """Tell people the ids, where the output is, and how to go on."""
        many = f"jobs {', '.join(self.jobs)}" if len(self.jobs) > 1 else f"job {self.jobs[0]}"
        folder = shlex.quote(str(self.log.parent.parent))
        log = str(self.log).replace("%j", self.jobs[0]).replace("%A", self.jobs[0])
        return f"submitted {many}; output in {log}\nftscale status {folder}; ftscale logs -f {folder}"


def submit(run: Path, overrides: Sequence[str], request: Request, *, dry_run: bool = False) -> Submission:
    """Check the run, write its job into the run folder and submit it; with `dry_run` nothing is written.

    Raises UserError: all that is wrong with the request, the site's settings or the run, or sbatch's own words; nothing
    is left behind then.
    """
    site = load_site()
    problems = _request_problems(request)
    problems += container_problems(site.container) if site.container else []
    limit_s = slurm.seconds(request.time or site.time)
    configs: list[Config] = []
    try:
        base = at_real_folder(read_config(run, overrides))
        _check_and_plan(run, overrides, request, site)
        problems += _time_problems(base, request, limit_s)
        members = _members(request, base)
        configs = [at_real_folder(read_config(run, [*overrides, *member])) for member in members] or [base]
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(*problems)
    for config in configs:
        check_run_folder(config, resume=request.resume, overwrite=False)
        _refuse_second_job(Records(Path(config.run_folder)))
    if request.resume:
        _refuse_finished(configs)
    records = Records(Path(base.run_folder))
    _tell_container(base, site, gpus=bool(_gpus(request, site)))
    array = (request.array or _every(len(configs))) if members else None
    script = job_script(records.run_folder, request, site, array=array)
    jobs = () if dry_run else _write_and_submit(records, configs, script, chain=request.chain or 1, array=bool(members))
    return Submission(jobs, records.folder / _log_name(bool(members)), script)


def _tell_container(config: Config, site: Site, *, gpus: bool) -> None:
    """Say how steps will be started in a container. Raises UserError for folders that cannot be bound."""
    if site.container is None:
        return
    options, words = program(site.container, bound_folders(config, more=[site.scratch or ""]), gpus=gpus)
    log.info("steps run in a container: srun %s", shlex.join([*options, *words]))


def _check_and_plan(run: Path, overrides: Sequence[str], request: Request, site: Site) -> None:
    """Do as `ftscale check` and, where the site names its GPU, `ftscale plan`. Raises UserError: errors, or no room."""
    gpus = _gpus(request, site)
    found = check_run(
        run, overrides, nodes=request.nodes, gpus_per_node=_processes(request, site), resume=request.resume
    )
    for warning in found.warnings:
        log.warning("%s", warning)
    if found.errors:
        raise UserError(*found.errors)
    if not (site.gpu and gpus and request.plan):
        return
    from ftscale.models.trust import NeedsCodeError
    from ftscale.plan import plan_run
    from ftscale.plan.report import summary

    config = read_config(run, overrides)
    try:
        plan = plan_run(config, gpu=site.gpu, nodes=request.nodes, gpus_per_node=gpus, compare=False)
    except NeedsCodeError as error:
        log.warning("submitted without a plan: %s", error)
        return
    for line in summary(plan):
        log.info("%s", line)
    if not plan.fits:
        raise UserError(
            f"{summary(plan)[0]}; `ftscale plan {run} --gpu {site.gpu} --nodes {request.nodes} --gpus-per-node {gpus}` "
            "ranks what would. --no-plan submits it all the same."
        )


def resubmit(run_folder: Path, options: Sequence[str] = ()) -> Submission:
    """Submit a run's job script again, which goes on from the newest checkpoint. options: of sbatch, `key=value`.

    Raises UserError: the run is finished, still has a job, or was never submitted; or sbatch's own words.
    """
    records = Records(run_folder)
    script, submitted = records.folder / SCRIPT, records.events("submit")
    if not script.is_file() or not submitted:
        raise UserError(f"{run_folder} has no {SCRIPT}: it was not submitted by `ftscale submit`; submit its run.")
    if run_status(run_folder) in FINISHED:
        _refuse_finished([at_real_folder(read_config(records.folder / RUN))])
    _refuse_second_job(records)
    records.cancel_mark.unlink(missing_ok=True)
    log = records.folder / _log_name((records.folder / RUNS).is_file())
    jobs = _sbatch(script, chain=len(submitted[-1]["jobs"]), options=[f"--{option}" for option in options])
    records.add("submit", jobs=jobs)
    return Submission(tuple(jobs), log, script.read_text())


def _gpus(request: Request, site: Site) -> int:
    """Return the GPUs of a node: the request's, else the site's."""
    return site.gpus_per_node if request.gpus_per_node is None else request.gpus_per_node


def _processes(request: Request, site: Site) -> int:
    """Return the processes of a node: the request's, else one a GPU, or one where there is none."""
    return request.processes or _gpus(request, site) or 1


def job_script(run_folder: Path, request: Request, site: Site, *, array: str | None) -> str:
    """The template filled in for a request; array: members, e.g. 0-5%2, None = a single run.

    Raises UserError for values and names of folders that cannot stand in a job script.
    """
    folder = Records(run_folder).folder.resolve()
    if "\\" in str(folder):  # to Slurm: none of the symbols in the name of a log is replaced (seen with 22.05)
        raise UserError(
            f"run_folder = {run_folder}: Slurm writes no log below {folder}, because of its backslash; rename it."
        )
    gpus, processes = _gpus(request, site), _processes(request, site)
    options: dict[str, str | None] = {
        "job-name": run_folder.name,
        "output": f"{str(folder).replace('%', '%%')}/{_log_name(bool(array))}",
        "nodes": f"1-{request.nodes}" if request.elastic else str(request.nodes),
        "cpus-per-task": str(site.cpus_per_node or processes),
        "time": request.time or site.time,
        "signal": f"B:USR1@{_signal_s(request.time or site.time, site)}",
    }
    if gpus:
        options["gpus-per-node"] = str(gpus)
    named = {"partition": request.partition or site.partition, "account": request.account or site.account}
    options |= {name: value for name, value in named.items() if value}
    if site.mail:
        options |= {"mail-user": site.mail, "mail-type": "END,FAIL,REQUEUE"}
    if request.elastic:  # with it Slurm gives the smallest number of nodes, without it the largest it has
        options["ntasks-per-node"] = None
    if request.chain:
        options |= {"requeue": None, "no-requeue": ""}
    if array:
        options["array"] = array
    options |= {name: str(value) for name, value in site.sbatch.items()}
    options |= {option.partition("=")[0]: option.partition("=")[2] for option in request.sbatch}
    variables = {
        "LAUNCHER": request.launcher,
        "PROCESSES": str(processes),
        "ON_STOP": "end" if request.chain else "requeue",
        "ELASTIC": "yes" if request.elastic else "no",
        "SILENCE_S": f"{site.silence_s:g}",
        "SCRATCH": site.scratch or "",
        "MIN_FREE_GIB": f"{site.min_free_gib:g}",
        "MAX_CLOCK_SKEW_S": f"{site.max_clock_skew_s:g}",
        "INTERFACE": site.interface or "",
        "CONTAINER": as_variable(site.container),
    }
    template = resource("slurm", "array.sbatch" if array else "train.sbatch").read_text()
    text = fill(template, options=options, variables=variables, setup=site.setup)
    argument = folder / (RUNS if array else RUN)
    # sbatch hands no arguments to a script that is submitted again by hand: they stand in it
    return text.replace("set -euo pipefail\n", f"set -euo pipefail\nset -- {shlex.quote(str(argument))}\n", 1)


def _write_and_submit(
    records: Records, configs: list[Config], script: str, *, chain: int, array: bool
) -> tuple[str, ...]:
    """All or nothing: where sbatch refuses, what was written goes again."""
    folder = records.folder
    new = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"run-{number:05d}.yaml" for number in range(len(configs))] if array else [folder / RUN]
    try:
        write_text(folder / SCRIPT, script)
        if array:
            write_text(folder / RUNS, "".join(f"{shlex.quote(str(file.resolve()))}\n" for file in files))
        for config, file in zip(configs, files, strict=True):
            write_config(config, file, with_secrets=True)  # the job has nothing else to read
        jobs = _sbatch(folder / SCRIPT, chain=chain)
    except BaseException:
        if new:
            shutil.rmtree(new[0])
        raise
    records.cancel_mark.unlink(missing_ok=True)
    records.add("submit", jobs=jobs)
    for number, config in enumerate(configs if array else ()):
        Records(Path(config.run_folder)).add("submit", jobs=[f"{jobs[0]}_{number}"])
    return tuple(jobs)


def _refuse_finished(configs: Sequence[Config]) -> None:
    """Raise UserError where no run has a step left: a job would end at once."""
    finished = {
        config.run_folder: run_status(Path(config.run_folder)) for config in configs if not is_given_more(config)
    }
    if len(finished) == len(configs) and all(status in FINISHED for status in finished.values()):
        raise UserError(
            *(
                f"{folder} is finished ({status}); there is nothing to submit. More of train.epochs or train.max_steps "
                "has it go on: ftscale submit RUN.yaml --resume train.epochs=..."
                for folder, status in finished.items()
            )
        )


def _refuse_second_job(records: Records) -> None:
    for job in records.jobs():
        state = slurm.job_fields(job).get("JobState", "COMPLETED")
        if state not in slurm.ENDED:
            folder = records.run_folder
            raise UserError(f"{folder} still has job {job} ({state}); ftscale cancel {folder} ends it.")


def _sbatch(script: Path, *, chain: int, options: Sequence[str] = ()) -> list[str]:
    """The ids of the jobs; each of a chain waits for the one before."""
    begin_work()  # sbatch gives this process's environment to the job
    jobs: list[str] = []
    for _ in range(chain):
        after = [f"--dependency=afterany:{jobs[-1]}"] if jobs else []
        answer = slurm.call("sbatch", "--parsable", *options, *after, str(script)).strip()
        if not is_job(job := answer.partition(";")[0]):
            raise UserError(f"sbatch answered {answer!r} instead of a job's number; look at what sbatch is here.")
        jobs.append(job)
    return jobs


def _members(request: Request, base: Config) -> list[list[str]]:
    """The settings by which each member of an array differs, its run folder last; empty where there is no array.

    Trackers show the members as one group, each by a name of its own.
    """
    axes = [[f"seed={seed}" for seed in range(request.seeds)]] if request.seeds else []
    for axis in request.grid:
        name, _, values = axis.partition("=")
        axes.append([f"{name}={value}" for value in values.split(",")])
    if not axes:
        return []
    whole = Path(base.run_folder).name
    group, begins = json.dumps(base.report.group or whole), base.report.name or whole
    return [
        [
            *member,
            *((f"report.name={json.dumps(f'{begins}-{name}')}", f"report.group={group}") if base.report.to else ()),
            f"run_folder={base.run_folder}/{name}",
        ]
        for member in itertools.product(*axes)
        for name in ["-".join(setting.replace("=", "-") for setting in member)]
    ]


def _signal_s(time: str, site: Site) -> int:
    """Seconds before the end of the early signal: the site's, and of a short job a quarter."""
    limit_s = slurm.seconds(time)
    return site.signal_before_s if limit_s is None else min(site.signal_before_s, int(limit_s / 4))


def _request_problems(request: Request) -> list[str]:
    """What is wrong with the options of the command line."""
    problems = []
    if request.launcher not in LAUNCHERS:
        problems.append(unknown_name("--launcher", request.launcher, LAUNCHERS))
    problems += [
        f"--grid {axis!r} must be setting=value,value; write e.g. optimizer.lr=1e-5,2e-5."
        for axis in request.grid
        if not all(axis.partition("=")[::2])
    ]
    if request.time and slurm.seconds(request.time) is None and request.time not in UNLIMITED:
        problems.append(f"--time {request.time} is no time limit; write minutes, 24:00:00 or 2-12:00:00.")
    if request.array and not (request.seeds or request.grid):
        problems.append(f"--array {request.array} chooses among members, and there are none; add --seeds or --grid.")
    if request.chain and (request.seeds or request.grid):
        problems.append("--chain is for a single run; submit the members of --seeds or --grid without it.")
    return problems


def _time_problems(config: Config, request: Request, limit_s: float | None) -> list[str]:
    least = config.checkpoint.before_end_s + START_S
    if limit_s is None or limit_s >= least:
        return []
    return [
        f"--time {request.time} leaves no time to train: the run saves checkpoint.before_end_s = "
        f"{config.checkpoint.before_end_s:g} s before the end; ask for {math.ceil(least / 60)} minutes or more."
    ]


def _every(number: int) -> str:
    return f"0-{number - 1}"


def _log_name(array: bool) -> str:
    return "job-%A_%a.log" if array else "job-%j.log"
