"""What the launcher says of this process, and what in the environment must not change what is trained.

Launchers tell by variables of the environment: torchrun and accelerate launch, srun, mpirun. Such variables are also
left over from other jobs, whole or in part. Here is the one place that reads them: what tells this process's rank is
taken over, what would change the arithmetic is kept from the libraries and said, what asks for more is refused.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from ftscale.base.errors import UserError

MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
"""Rank, number of processes and rank on its machine, as Open MPI, MVAPICH and Intel MPI (MPICH) tell them."""
_COUNTS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "LOCAL_SIZE")

GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What several processes need to find each other."""
_ALONE = (*GROUP, "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "NODE_RANK")

REFUSED = {
    "ACCELERATE_USE_FSDP": ("FSDP (fsdp_config)", "distributed.strategy: zero3 shards the weights, too"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM (megatron_lm_config)", "distributed.strategy names what there is"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "tensor, context or sequence parallelism (parallelism_config)",
        "distributed.strategy names what there is",
    ),
    "ACCELERATE_USE_SAGEMAKER": ("SageMaker's launcher", "start with torchrun or accelerate launch"),
}
"""Variables that ask for what a run does not do, by what they ask for and what helps."""

OTHERS = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "FP8_", "XLA_USE_", "XLA_DOWNCAST_")
"""Beginnings of variables by which Accelerate is told what a run's configuration says here."""
_OTHER = ("FORK_LAUNCHED", "USE_TORCH_XLA", "PT_HPU_LAZY_MODE", "DEEPSPEED_USE_HPU")

SETTINGS = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "batch.global_size, batch.micro_size",
    "ACCELERATE_GRADIENT_CLIPPING": "train.max_grad_norm",
    "ACCELERATE_MIXED_PRECISION": "train.precision",
}
"""Whose setting of ours counts instead."""

_TAKEN_OVER = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_", "ACCELERATE_CONFIG_DS_FIELDS", "ACCELERATE_USE_CPU")
"""Beginnings of variables that `distributed.resolve_strategy` has read."""
_NOTHING = ("", "no", "none", "false", "0", "default")
_TRUE = ("y", "yes", "t", "true", "on", "1")


@dataclass(frozen=True)
class Place:
    """This process among those that were launched together."""

    rank: int
    world_size: int
    said: tuple[str, ...] = ()
    """What was taken over or left aside, a line each."""


def launched_rank() -> int:
    """This process's rank as the launcher says it, before any process group exists; 0 where that is no number."""
    variables = os.environ
    if "RANK" in variables:
        return _number(variables, "RANK") or 0
    if _is_slurm_step(variables):
        return _number(variables, "SLURM_PROCID") or 0
    found = _mpi(variables)
    return (_number(variables, found[0]) or 0) if found else 0


def launched_processes() -> int:
    """How many processes were launched together, as the launcher says it; 1 where that is no number."""
    variables = os.environ
    if "RANK" in variables or "WORLD_SIZE" in variables:
        return _number(variables, "WORLD_SIZE") or 1
    if _is_slurm_step(variables):
        return int(variables["SLURM_STEP_NUM_TASKS"])
    found = _mpi(variables)
    return int(variables[found[1]]) if found else 1


def is_true(name: str) -> bool:
    """Whether a variable of the environment says yes, as Accelerate reads it."""
    return os.environ.get(name, "").lower() in _TRUE


def check_launch() -> None:
    """Raise UserError where the environment asks for what a run does not do, or tells a rank in part."""
    problems = [
        f"{name} = {os.environ[name]} in the environment asks for {what}, which ftscale does not do; unset it or take "
        f"it out of accelerate's config: {fix}."
        for name, (what, fix) in REFUSED.items()
        if is_true(name)
    ]
    problems += _place_problems(dict(os.environ))
    if problems:
        raise UserError(*problems)


def adopt_launch(*, precision: str) -> Place:
    """Make the environment tell this process's rank and nothing else that counts; changes os.environ.

    Rank and address of srun and mpirun are written as torchrun writes them. A process alone has no rank left: what
    tells one is of a launcher of one process, or left over. `precision`: train.precision.
    Raises UserError: as `check_launch`, and where srun's nodes cannot be told.
    """
    check_launch()
    variables, said = os.environ, []
    if "RANK" not in variables:
        said += _adopt_slurm(variables) if _is_slurm_step(variables) else _adopt_mpi(variables)
    rank, world_size = _number(variables, "RANK") or 0, _number(variables, "WORLD_SIZE") or 1
    for name in [*(name for names in MPI for name in names), *_COUNTS]:
        variables.pop(name, None)
    if world_size == 1:
        for name in [*_ALONE, *(name for name in variables if name.startswith("TORCHELASTIC_"))]:
            variables.pop(name, None)
    aside = {name: variables.pop(name) for name in sorted(variables) if _is_aside(name)}
    ours = ("no", "fp32") if precision == "fp32" else (precision,)
    same = {"ACCELERATE_MIXED_PRECISION": ours, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1",)}
    shown = [
        f"{name}={value}{f' ({SETTINGS[name]} counts)' if name in SETTINGS else ''}"
        for name, value in aside.items()
        if value.lower() not in (*_NOTHING, *same.get(name, ())) and not name.startswith(_TAKEN_OVER)
    ]
    if shown:
        said.append(f"without effect, since the run's own configuration alone counts: {', '.join(shown)}")
    return Place(rank, world_size, tuple(said))


def _is_aside(name: str) -> bool:
    return name.startswith(OTHERS) or name in _OTHER


def _place_problems(variables: Mapping[str, str]) -> list[str]:
    numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if wrong := [name for name in numbers if name in variables and _number(variables, name) is None]:
        return [f"{name} = {variables[name]!r} in the environment is no number; {_UNSET}." for name in wrong]
    if "RANK" not in variables and _is_slurm_step(variables):
        needed = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
        if missing := [name for name in needed if name not in variables]:
            return [
                f"SLURM_STEP_NUM_TASKS = {variables['SLURM_STEP_NUM_TASKS']} in the environment, but no "
                f"{', '.join(missing)}: left over of another job? Start with srun, or unset SLURM_STEP_NUM_TASKS."
            ]
        return []
    if "RANK" not in variables and (found := _mpi(variables)):
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not variables.get(name)]:
            return [
                f"{found[1]} = {variables[found[1]]} in the environment is mpirun's, but {' and '.join(missing)} is "
                "not set, by which its processes would find each other; set that (mpirun -x), start with torchrun or "
                f"accelerate launch, or unset {found[1]} where it is left over of another job."
            ]
        return []
    rank, world_size = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    if (world_size or 1) < 1 or not 0 <= (rank or 0) < (world_size or 1):
        return [
            f"RANK = {variables.get('RANK', '(not set)')} of WORLD_SIZE = {variables.get('WORLD_SIZE', '(not set)')} "
            f"in the environment cannot be; {_UNSET}."
        ]
    if (world_size or 1) > 1 and (missing := [name for name in GROUP if not variables.get(name)]):
        return [f"WORLD_SIZE = {world_size} in the environment, but no {', '.join(missing)}; {_UNSET}."]
    return []


_UNSET = "start with torchrun, accelerate launch or srun, or unset what is left over of another job"


def _is_slurm_step(variables: Mapping[str, str]) -> bool:
    return (_number(variables, "SLURM_STEP_NUM_TASKS") or 1) > 1


def _mpi(variables: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The names by which mpirun tells this process's place among several; None = it does not."""
    told = (names for names in MPI if (_number(variables, names[1]) or 1) > 1)
    return next((names for names in told if _number(variables, names[0]) is not None), None)


def _adopt_slurm(variables: os._Environ[str]) -> list[str]:
    """Under srun without another launcher: rank and address from Slurm's step variables."""
    variables["RANK"] = variables["SLURM_PROCID"]
    variables["LOCAL_RANK"] = variables["SLURM_LOCALID"]
    variables["WORLD_SIZE"] = variables["SLURM_STEP_NUM_TASKS"]
    if "MASTER_ADDR" not in variables:
        variables["MASTER_ADDR"] = _hosts(variables["SLURM_STEP_NODELIST"])[0]
    # a port of its own for each job and step, outside the usual ephemeral range
    job = int(variables["SLURM_JOB_ID"]) * 10 + int(variables.get("SLURM_STEP_ID", "0"))
    variables.setdefault("MASTER_PORT", str(10_000 + job % 20_000))
    return []


def _hosts(nodes: str) -> list[str]:
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"SLURM_STEP_NODELIST = {nodes} in the environment, but scontrol cannot tell its nodes ({error}); start "
            "with srun, set MASTER_ADDR, or unset SLURM_STEP_NUM_TASKS where it is left over of another job."
        ) from error


def _adopt_mpi(variables: os._Environ[str]) -> list[str]:
    """Under mpirun, which `accelerate launch --mpirun_hostfile` calls too."""
    found = _mpi(variables)
    if found is None:
        return []
    variables["RANK"], variables["WORLD_SIZE"] = variables[found[0]], variables[found[1]]
    variables["LOCAL_RANK"] = variables.get(found[2], "0")
    return [f"rank {variables['RANK']} of {variables['WORLD_SIZE']} processes, as {found[0]} and {found[1]} say"]


def _number(variables: Mapping[str, str], name: str) -> int | None:
    """None = not set, or no number."""
    try:
        return int(variables[name])
    except (KeyError, ValueError):
        return None
