"""All lines of the doctor, in reading order, as text and as JSON for bug reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ftscale.base.shown import shown
from ftscale.doctor import machine, software
from ftscale.doctor.findings import Finding, ask


def examine() -> list[Finding]:
    """Look at this machine; nothing is created or loaded, and what a probe cannot tell is a line as well."""
    told: dict[str, Any] = {}

    def ask_torch() -> Iterable[Finding]:
        told.update(software.ask_torch())
        return software.torch_lines(told)

    probes = (
        ("python", software.python),
        ("versions", software.packages),
        ("CPU", machine.processors),
        ("torch", lambda: iter(ask_torch())),
        ("GPU by its driver", machine.driver),
        ("DeepSpeed operators", partial(software.compiled, told)),
        ("Slurm", machine.slurm),
        ("disks", machine.disks),
        ("hub access", machine.hub),
    )
    return [finding for name, probe in probes for finding in ask(name, probe)]


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether something can be trained here at all."""
    return all(finding.state != "broken" for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """Write a line each, and the verdict."""
    broken = [finding.name for finding in findings if finding.state == "broken"]
    lacking = [finding.name for finding in findings if finding.state == "lacking"]
    if broken:
        verdict = f"nothing can be trained here before this is mended: {', '.join(broken)}"
    elif lacking:
        verdict = f"training works here; some uses lack something: {', '.join(dict.fromkeys(lacking))}"
    else:
        verdict = "training works here"
    return shown("\n".join([*(finding.line for finding in findings), verdict]))


def as_json(findings: Sequence[Finding]) -> str:
    """Write the same for bug reports: no secrets of URLs, and no token."""
    rows = [
        {
            "name": finding.name,
            "state": finding.state,
            "text": shown(finding.text),
            "fix": shown(finding.fix),
            "value": finding.value,
        }
        for finding in findings
    ]
    return json.dumps({"can_train": can_train(findings), "findings": rows}, indent=2)
