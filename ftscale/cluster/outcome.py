"""What follows when a start of a job is over: a table of causes, without a word to Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ftscale.base.errors import EXIT_DONE, EXIT_FAULT, EXIT_PREEMPTED, EXIT_USER_ERROR
from ftscale.cluster.records import Event

FINISHED = ("completed", "stopped_early")


@dataclass(frozen=True)
class Facts:
    """What is known of a start that is over."""

    exit_code: int = 0
    """Of the training step."""
    status: str = ""
    """In the result.json that this start wrote; "" = it wrote none."""
    failure: dict[str, Any] = field(default_factory=dict)
    """logs/failure.json, the first error of a rank; empty = none."""
    signal: str = ""
    """That the job script was sent: SIGUSR1 (save and start again), SIGTERM (Slurm ends the job), "" = none."""
    cause: str = ""
    """Of the signal, as far as Slurm tells: "time limit", "preempted", or "" = someone's request."""
    cancelled: bool = False
    """By `ftscale cancel`."""
    silent_s: float = 0.0
    """For how long nothing was written when the watchdog ended the step; 0 = it did not."""
    silent_nodes: tuple[str, ...] = ()
    """Nodes of ranks that did not answer then."""
    lost_nodes: tuple[str, ...] = ()
    """Nodes that are down or do not answer the controller."""
    lost_peer: str = ""
    """The node that the first error names as the other end of a lost connection; "" = none."""
    killed: tuple[tuple[str, str], ...] = ()
    """Nodes with a process that something ended from outside, and by what."""


@dataclass(frozen=True)
class Verdict:
    """What the job does next."""

    action: Literal["done", "again", "stop", "leave"]
    """done; again = requeue, or the next of the chain; stop = an error; leave = Slurm decides."""
    reason: str
    exit_code: int = EXIT_DONE
    leave_out: tuple[str, ...] = ()
    """Nodes that the next start shall not use."""
    counts: bool = False
    """A start without progress is held against the run: the cause may be the run itself."""


def judge(facts: Facts) -> Verdict:
    """The first cause that fits, from the most certain one on."""
    if facts.status in FINISHED:
        return Verdict("done", facts.status)
    saved = "saved" if facts.status == "preempted" else "not saved"
    if facts.cancelled:
        return Verdict("stop", f"cancelled, {saved}", EXIT_PREEMPTED)
    if facts.signal == "SIGTERM" and facts.cause != "time limit":
        why = _named(facts.lost_nodes, "down") or facts.cause or "scancel or requeue"
        return Verdict("leave", f"ended by Slurm ({why}), {saved}", EXIT_PREEMPTED)
    if facts.signal or facts.status == "preempted" or facts.exit_code == EXIT_PREEMPTED:
        why = facts.cause or "asked to stop"
        return Verdict("again", f"{why}, {saved}", EXIT_PREEMPTED, counts=facts.cause == "time limit")
    failure = facts.failure
    if failure and not failure["peer_lost"]:
        where = f"rank {failure['rank']} on {failure['host']}"
        return Verdict("stop", f"{where}: {failure['error']}", failure["exit_code"])
    if facts.silent_s:
        why = _named(facts.silent_nodes, "silent") or "every rank waits"
        return Verdict(
            "again", f"nothing written for {facts.silent_s:.0f} s ({why})", EXIT_FAULT, facts.silent_nodes, counts=True
        )
    if facts.lost_nodes:
        return Verdict("again", _named(facts.lost_nodes, "down"), EXIT_FAULT, facts.lost_nodes, counts=True)
    if facts.killed:
        nodes = tuple(node for node, _ in facts.killed)
        why = ", ".join(f"a process on {node}: {how}" for node, how in facts.killed)
        return Verdict("again", why, EXIT_FAULT, nodes, counts=True)
    if failure:
        other = f"a process on {facts.lost_peer}" if facts.lost_peer else "another process"
        why = f"rank {failure['rank']} on {failure['host']} lost {other}"
        return Verdict("again", why, EXIT_FAULT, (facts.lost_peer,) if facts.lost_peer else (), counts=True)
    if facts.exit_code == EXIT_USER_ERROR:
        return Verdict("stop", "a mistake in the configuration or the data, see above", EXIT_USER_ERROR)
    return Verdict("stop", f"the step ended with code {facts.exit_code}, see above", facts.exit_code or EXIT_FAULT)


def judge_nodes(bad: dict[str, list[str]], *, nodes: Sequence[str]) -> Verdict | None:
    """Judge the health check: None where all nodes are well; a minority is left out, a majority is no node's fault."""
    if not bad:
        return None
    why = "; ".join(f"{node}: {', '.join(reasons)}" for node, reasons in bad.items())
    if len(bad) * 2 > len(nodes):
        return Verdict("stop", f"{len(bad)} of {len(nodes)} nodes fail the health check ({why})", EXIT_FAULT)
    return Verdict("again", f"bad node: {why}", EXIT_FAULT, tuple(bad))


def bounded(verdict: Verdict, *, before: Sequence[Event], progress: int, max_restarts: int) -> Verdict:
    """The verdict, or a stop where starting again has stopped making sense.

    before: the earlier `end` events of this submission; progress: steps that this start added to the checkpoints.
    """
    if verdict.action != "again":
        return verdict
    if len(before) >= max_restarts:
        return replace(verdict, action="stop", reason=f"{verdict.reason}; restart {len(before)} was the last allowed")
    last = [event for event in before if event["counts"]][-1:]
    if verdict.counts and progress <= 0 and last and last[0]["progress"] <= 0:
        return replace(
            verdict, action="stop", reason=f"{verdict.reason}; no progress twice in a row, before: {last[0]['reason']}"
        )
    return verdict


def _named(nodes: Sequence[str], what: str) -> str:
    return f"{', '.join(nodes)} {what}" if nodes else ""
