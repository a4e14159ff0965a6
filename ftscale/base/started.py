"""The command by which this process was started, and the one that goes on with a run that was stopped."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ftscale.base.launched import launched_processes, launched_rank
from ftscale.base.logs import log, setup_logging

STARTED_BY = "FTSCALE_STARTED_BY"
"""The variable by which `ftscale launch` and the job of `ftscale submit` tell their processes who says how to go on."""


def started_command() -> list[str] | None:
    """The words of the command that led to this process: a launcher's, where it was given the words of this one.

    None where another one tells it (STARTED_BY), and where this is one of several processes and nothing tells who
    started them.
    """
    if os.environ.get(STARTED_BY):
        return None
    own, words, parent = sys.argv[1:], list(sys.orig_argv), os.getppid()
    if words[-len(own) :] != own:  # of a program that calls ftscale's
        words = ["ftscale", *own]
    several = launched_processes() > 1
    while (above := _words_of(parent)) and len(above) > len(own) and above[-len(own) :] == own:
        words, parent, several = above, _parent_of(parent), False
    return None if several else _as_typed(words)


class GoOn:
    """Tells whoever has stopped a run the command that goes on with it. Make it while the launcher is there."""

    def __init__(self) -> None:
        self._command = started_command()
        self._look: Callable[[], object] = lambda: None
        self._before: object = None

    def watch(self, look: Callable[[], object]) -> None:
        """Note what is there before anything is written. `look`: gives what this start replaces when it begins."""
        self._look, self._before = look, look()

    def has_begun(self) -> bool:
        """Tell whether this start has begun its run."""
        return self._look() != self._before

    def tell(self) -> None:
        """Say the command on rank 0: with --resume where this start has begun the run, else as it was given."""
        if self._command is not None:
            begun = self.has_begun()
            setup_logging(rank=launched_rank())
            command = go_on_command(self._command, begun=begun)
            log.info("go on with it: %s" if begun else "start it again: %s", command)


def go_on_command(words: Sequence[str], *, begun: bool) -> str:
    """A command of `started_command` as a shell takes it: again, or with --resume where a run has `begun`."""
    words, end = list(words), len(words)
    own = len(words) - len(sys.argv[1:])
    if begun:
        if "--" in words[own:]:
            end = words.index("--", own)
        options = [word for word in words[own:end] if word != "--overwrite"]
        options += [] if "--resume" in options else ["--resume"]
        words[own:end] = options
    return shlex.join(words)


def _words_of(process: int) -> list[str]:
    """The words that a process was started by; none where nothing tells, as outside Linux."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except OSError:
        return []


def _parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def _as_typed(words: Sequence[str]) -> list[str]:
    """Without the Python that a script names in its first line, and without folders where a shell finds them."""
    program, *rest = words
    if Path(program).name.startswith("python") and rest and os.path.isfile(rest[0]) and os.access(rest[0], os.X_OK):
        program, *rest = rest
    found = shutil.which(name := os.path.basename(program))
    is_found = found is not None and os.path.exists(program) and os.path.samefile(found, program)
    return [name if is_found else program, *rest]
