"""Fills the job scripts of slurm/: their #SBATCH lines and the variables at the top, nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from ftscale.base.errors import UserError
from ftscale.base.shown import control_characters

OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
"""A long name of an option of sbatch."""
SETUP = "# environment"
"""Starts the comment under which the lines that make the environment stand, up to the next empty line."""


def fill(
    template: str, *, options: Mapping[str, str | None], variables: Mapping[str, str], setup: Sequence[str] = ()
) -> str:
    """The job script with these values.

    options: of sbatch by their long names, "" for a flag, None to leave a line of the template out; variables: those at
    the top of the template; setup: lines of bash instead of the template's own, where there are some. Raises UserError
    for an option that has no such name, and for a value that is more than one line: it would be bash.
    """
    given = {**{f"--{name}": value or "" for name, value in options.items()}, **variables}
    problems = [
        f"{name} = {value!r} holds line ends or other control characters ({found}) and cannot stand in a job script; "
        "remove them, also from the names of folders."
        for name, value in given.items()
        if (found := control_characters(value))
    ]
    problems += [
        f"--{name!r} is no option of sbatch; its long names are letters, digits and hyphens."
        for name in options
        if not OPTION_NAME.fullmatch(name)
    ]
    if problems:
        raise UserError(*problems)
    lines = template.splitlines()
    for name, value in options.items():
        lines = _set_option(lines, name, value)
    for name, value in variables.items():
        lines = _set_variable(lines, name, value)
    if setup:
        start = next(number for number, line in enumerate(lines) if line.startswith(SETUP)) + 1
        end = lines.index("", start)
        lines[start:end] = setup
    return "\n".join(lines) + "\n"


def _set_option(lines: list[str], name: str, value: str | None) -> list[str]:
    pattern = re.compile(rf"#SBATCH --{re.escape(name)}(=|\s|$)")
    line = f"#SBATCH --{name}={_quoted(value)}" if value else f"#SBATCH --{name}"
    found = [number for number, old in enumerate(lines) if pattern.match(old)]
    if found:
        comment = lines[found[0]].partition("  #")
        new = [] if value is None else [f"{line:<33} {comment[1].strip()}{comment[2]}".rstrip()]
        return [*lines[: found[0]], *new, *lines[found[0] + 1 :]]
    if value is None:
        return lines
    last = max(number for number, old in enumerate(lines) if old.startswith("#SBATCH"))
    return [*lines[: last + 1], line, *lines[last + 1 :]]


def _quoted(value: str) -> str:
    """Quote a word as sbatch reads its lines: quotes hold spaces and #, a backslash keeps the next character as it is.

    (src/sbatch/opt.c, _get_argument.)
    """
    if not re.search(r"[\s'\"#\\]", value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _set_variable(lines: list[str], name: str, value: str) -> list[str]:
    pattern = re.compile(rf"{name}=(\S*)\s*(#.*)?$")
    number, match = next((number, match) for number, line in enumerate(lines) if (match := pattern.match(line)))
    setting = f"{name}={shlex.quote(value) if value else ''}"
    new = f"{setting:<26} {match[2] or ''}".rstrip()
    return [*lines[:number], new, *lines[number + 1 :]]
