"""Slurm's commands, as functions; what they refuse comes back in their own words."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence

from ftscale.base.errors import UserError

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")
"""Job states after which a job does nothing any more."""

UNUSABLE = ("DOWN", "DRAIN", "FAIL", "NOT_RESPONDING", "UNKNOWN", "MAINT", "POWERED_DOWN")
"""Parts of a node's state in which it takes no job."""


def call(*command: str, timeout_s: float = 60.0) -> str:
    """What a command prints. Raises UserError: it is not installed, or its own words where it refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not on the path; run this on a login node of a Slurm cluster, or load its module."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} does not answer within {timeout_s:g} s; is slurmctld up? Try sinfo.") from error
    if done.returncode:
        raise UserError(*(done.stderr.strip() or f"{command[0]} ended with code {done.returncode}.").splitlines())
    return done.stdout


def job_fields(job: str) -> dict[str, str]:
    """What the controller knows of a job, by its own names (JobState, Reason, ...); empty where it has forgotten it."""
    try:
        text = call("scontrol", "show", "job", "-o", job)
    except UserError:
        return {}
    return _fields(text.splitlines()[0])


def hostnames(nodes: str) -> list[str]:
    """`n[1-3]` as n1, n2, n3."""
    return call("scontrol", "show", "hostnames", nodes).split() if nodes else []


def node_states(nodes: Sequence[str] = ()) -> dict[str, str]:
    """The state of each node, as `IDLE+DRAIN`; of all nodes without names."""
    lines = call("scontrol", "show", "node", "-o", *([",".join(nodes)] if nodes else [])).splitlines()
    found = [_fields(line) for line in lines if line.startswith("NodeName=")]
    return {fields["NodeName"]: fields["State"] for fields in found}


def is_usable(state: str) -> bool:
    """Whether a node in this state takes jobs."""
    return not (state.endswith("*") or any(word in state for word in UNUSABLE))


def lost_nodes(nodes: Sequence[str]) -> list[str]:
    """Those of the nodes that are down or do not answer the controller; nodes that only drain are not.

    None where the controller itself does not answer.
    """
    bad = ("DOWN", "NOT_RESPONDING", "FAIL")
    try:
        states = node_states(nodes)
    except UserError:
        return []
    return [name for name in nodes if (state := states.get(name, "DOWN")).endswith("*") or any(b in state for b in bad)]


def own_job() -> str:
    """The id of the job that this process runs in, as scontrol takes it.

    One task of an array has the array's own id as SLURM_JOB_ID, which means the whole array to scontrol.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def seconds(text: str) -> float | None:
    """Slurm's `days-hours:minutes:seconds` and its shorter forms as seconds; None = no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        return None
    days, first, second, third = match.groups()
    if days is not None:
        hours, minutes, rest = int(first), int(second or 0), int(third or 0)
    elif third is not None:
        hours, minutes, rest = int(first), int(second), int(third)
    else:
        hours, minutes, rest = 0, int(first), int(second or 0)
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60.0 + rest


def _fields(line: str) -> dict[str, str]:
    """`Name=value Name=value`: a value ends before the next name, and may hold spaces (Reason, Command)."""
    found = re.finditer(r"(?:^| )([A-Z][A-Za-z:/]*)=(.*?)(?= [A-Z][A-Za-z:/]*=|$)", line.strip())
    return {match[1]: match[2] for match in found}
