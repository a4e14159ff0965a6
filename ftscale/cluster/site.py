"""Site settings, written once: ~/.config/ftscale/cluster.yaml, or cluster.yaml beside the runs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.cluster.container import Container
from ftscale.cluster.render import OPTION_NAME
from ftscale.config.problems import problems_of
from ftscale.config.schema import OneLine, Section
from ftscale.config.yaml_text import read_yaml

PLACES = (Path("~/.config/ftscale/cluster.yaml"), Path(".ftscale/cluster.yaml"), Path("cluster.yaml"))
"""Where site settings lie; a later file's settings are laid over an earlier one's."""


def _time_limit(value: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", value):
        raise ValueError("must be minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    return value


def _option_name(value: str) -> str:
    if not OPTION_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no option of sbatch; its long names are letters, digits and hyphens")
    return value


TimeLimit = Annotated[str, AfterValidator(_time_limit)]
OptionName = Annotated[str, AfterValidator(_option_name)]


class Site(Section):
    """What is the same for all jobs of a site; every setting is also free to be left out."""

    partition: OneLine | None = None
    """Partition of the jobs; null = the cluster's default."""
    account: OneLine | None = None
    """Account that is charged; null = the user's default."""
    time: TimeLimit = "24:00:00"
    """Time limit: minutes, hours:minutes:seconds or days-hours:minutes:seconds."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs of each node; 0 = jobs on CPUs."""
    gpu: OneLine | None = None
    """What they are, as `ftscale plan --gpu` calls them, e.g. a100-80gb; a run that does not fit is not submitted."""
    cpus_per_node: PositiveInt | None = None
    """CPUs of each node; null = one a process, or the cluster's default for GPUs."""
    mail: OneLine | None = None
    """Address that Slurm writes to when a job ends, fails or is requeued; null = no mail."""
    sbatch: dict[OptionName, OneLine | int] = {}
    """Further options of sbatch, e.g. `{qos: long, constraint: a100}`; an empty value is a flag."""
    setup: tuple[str, ...] = ()
    """Lines of bash that make the environment, e.g. `module load cuda`; empty = .venv/bin/activate where it is."""
    container: Container | None = None
    """What the steps of a job run in; null = the nodes' own environment."""
    interface: OneLine | None = None
    """Network interface between nodes, e.g. ib0; null = what gloo and NCCL choose."""
    scratch: OneLine | None = None
    """Local disk of each node, looked at by the health check; null = $TMPDIR, or the system's temporary folder."""
    min_free_gib: NonNegativeFloat = 1.0
    """Least free space on the scratch disk, in GiB."""
    max_clock_skew_s: PositiveFloat = 5.0
    """Largest difference between the clocks of two nodes."""
    silence_s: PositiveFloat = 1800.0
    """Seconds without a word in the run folder, after the first step, until a run is ended and started again; more than
    a save takes. Training and evaluations say how far they are."""
    signal_before_s: Annotated[int, Field(ge=60, le=65535)] = 300
    """Seconds before the time limit at which the run saves and ends; more than two saves and a minute."""


def load_site() -> Site:
    """The settings of all site files that are there, later ones laid over earlier ones; the log says which.

    They hold lines of bash that a job runs, so those that are not this user's or root's are left out, as git does.
    Raises UserError: a file is not YAML, or all the problems of its settings together.
    """
    settings: dict[str, Any] = {}
    problems, read = [], []
    for place in PLACES:
        path = place.expanduser()
        if path.is_file() and not _is_trusted(path):
            log.warning("%s is left out: it is neither this user's file nor root's; copy it to use it", path)
        elif path.is_file():
            read.append(str(path))
            data = read_yaml(path.read_text(encoding="utf-8-sig"), source=str(path)) or {}
            problems += [f"{path}: {problem}" for problem in _problems(data)]
            settings |= data if isinstance(data, dict) else {}
    if problems:
        raise UserError(*problems)
    log.info("site settings: %s", ", then ".join(read) or "none")
    return Site.model_validate(settings)


def _is_trusted(path: Path) -> bool:
    """Tell by its owner whether a file is trusted, and by the owner of a link to it too."""
    return {path.stat().st_uid, path.lstat().st_uid} <= {os.getuid(), 0}


def _problems(data: Any) -> list[str]:
    if not isinstance(data, dict):
        return [f"must hold keys and values, holds a {type(data).__name__}; see docs/slurm.md."]
    try:
        Site.model_validate(data)
    except ValidationError as error:
        return problems_of(error, model=Site, data=data)
    return problems_of(None, model=Site, data=data)
