"""Logging that knows its rank: rank 0 speaks at INFO, the others only in warnings, with rank and host.

What each rank says at INFO stands in the run folder too, in `logs/rank-NNNNN.log`.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import logging.handlers
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import TextIOWrapper
from pathlib import Path

from ftscale.base.errors import EXIT_FAULT, EXIT_USER_ERROR, UserError
from ftscale.base.files import open_new, open_to_append, partial_path
from ftscale.base.launched import launched_rank
from ftscale.base.sealed import DamagedError, line_of, read_json
from ftscale.base.shown import shown

log = logging.getLogger("ftscale")

LOGS = "logs"
FAILURE = "failure.json"
"""In `logs/`, the error that ended the newest start: rank, host, time, exit_code, peer_lost, error."""


def _as_shown(record: logging.LogRecord) -> bool:
    """A filter that hides secrets and control characters in the line of a record."""
    record.msg, record.args = shown(record.getMessage()), ()
    return True


log.addFilter(_as_shown)  # for handlers of the user's own, too
_kept = logging.handlers.MemoryHandler(capacity=0)  # holds lines as long as it has no file to pass them to
_failures: Path | None = None


class _LogFile(logging.FileHandler):
    """A log that is no link, and ends no run where it cannot be written, as on a full disk: this is said once."""

    _said = False

    def _open(self) -> TextIOWrapper:
        file = open_to_append(Path(self.baseFilename))
        assert isinstance(file, TextIOWrapper)
        return file

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            print(f"{self.baseFilename} cannot be written ({error.strerror}): lines may be lost", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # said of its last line already
            super().close()


def setup_logging(*, rank: int = 0, level: str = "INFO") -> None:
    """Send ftscale's log lines to stderr, and keep them for `open_log`; other libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {_who(rank)}%(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(level if rank == 0 else logging.WARNING)
    close_log()
    log.handlers[:] = [handler, _kept]
    log.propagate = False
    log.setLevel(logging.INFO)


def open_log(run_folder: Path, *, rank: int) -> None:
    """Write this rank's lines, those kept so far too, to its file in the run folder."""
    global _failures
    folder = run_folder / LOGS
    folder.mkdir(exist_ok=True)
    _failures = folder / FAILURE
    if rank == 0:
        _failures.unlink(missing_ok=True)
    file = _LogFile(folder / f"rank-{rank:05d}.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _kept.setTarget(file)
    assert file.stream is not None
    faulthandler.register(signal.SIGUSR2, file=file.stream)  # where each thread stands, for a run that hangs
    _kept.flush()
    about = f"rank {rank} is process {os.getpid()} on {host()}"  # for the file alone
    file.handle(log.makeRecord("ftscale", logging.INFO, "", 0, about, (), None))


def close_log() -> None:
    """Forget the run folder, and lines that no file was opened for."""
    global _failures
    if isinstance(_kept.target, logging.Handler):
        faulthandler.unregister(signal.SIGUSR2)
        _kept.target.close()
    _kept.setTarget(None)
    _kept.buffer.clear()
    _failures = None


@contextmanager
def in_file_alone() -> Iterator[None]:
    """Write lines to the run folder's log and nowhere else."""
    handlers, log.handlers[:] = log.handlers[:], [_kept]
    try:
        yield
    finally:
        log.handlers[:] = handlers


@contextmanager
def own_logging() -> Iterator[None]:
    """Lead ftscale's log lines back to where they went before; an error is noted in the run folder."""
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    try:
        yield
    except Exception as error:
        _write_traceback(error)
        note_failure(error, exit_code=EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAULT)
        raise
    finally:
        close_log()
        log.handlers[:] = handlers
        log.propagate = propagate
        log.setLevel(level)


def report_fault(error: BaseException, *, exit_code: int) -> None:
    """Say why this process ends: the rank that fails first with its whole traceback, those that lost it in one line.

    Every rank's own log has its traceback.
    """
    who, text = _who(launched_rank()), shown("".join(traceback.format_exception(error)))
    _write_traceback(error)
    lost, first = _is_peer_lost(error), note_failure(error, exit_code=exit_code)
    if _failures is not None and (lost or not first):
        last = text.strip().splitlines()[-1]
        text = f"error: {'lost another process' if lost else 'failed after another process'}: {last}"
    print("\n".join(f"{who}{line}" for line in text.strip().splitlines()), file=sys.stderr, flush=True)


def _write_traceback(error: BaseException) -> None:
    """Into this rank's own log."""
    if isinstance(_kept.target, logging.Handler):
        text = shown("".join(traceback.format_exception(error)))
        _kept.target.handle(log.makeRecord("ftscale", logging.ERROR, "", 0, "%s", (text,), None))


def note_failure(error: BaseException, *, exit_code: int) -> bool:
    """Write logs/failure.json; False where another process's own error stands there. A lost peer is no cause.

    On a full disk nothing is written.
    """
    try:
        return _note_failure(error, exit_code=exit_code)
    except OSError:
        return True


def _note_failure(error: BaseException, *, exit_code: int) -> bool:
    if _failures is None:
        return True
    lost = _is_peer_lost(error)
    about = {
        "rank": launched_rank(),
        "host": host(),
        "time": time.time(),
        "exit_code": exit_code,
        "peer_lost": lost,
        "error": shown(f"{type(error).__name__}: {error}"),
    }
    partial = partial_path(_failures)
    with open_new(partial) as file:
        file.write(line_of(about))
    try:
        os.link(partial, _failures)  # fails where there is one: the first stays
    except FileExistsError:
        if lost or _is_a_cause(_failures):
            return False
        os.replace(partial, _failures)
        return True
    finally:
        partial.unlink(missing_ok=True)
    return True


def _is_a_cause(failure: Path) -> bool:
    """Whether an error stands there that is no lost peer."""
    try:
        return read_json(failure).get("peer_lost") is False
    except (FileNotFoundError, DamagedError):
        return False


def _is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because a process at its other end is gone, or silent for too long."""
    text = str(error)
    gloo = "gloo" in text and any(word in text for word in ("Connection", "connection", "Timed out", "Broken pipe"))
    return gloo or any(kind.__name__ == "DistError" for kind in type(error).__mro__)


def _who(rank: int) -> str:
    return "" if rank == 0 else f"[rank {rank} on {host()}] "


def host() -> str:
    """This machine's name, as Slurm calls it where there is Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@contextmanager
def unchanged_levels() -> Iterator[None]:
    """Libraries say afterwards as much as before."""
    levels = {name: logging.getLogger(name).level for name in ("bitsandbytes", "DeepSpeed")}
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def escape_output() -> None:
    """What the terminal's encoding cannot show (ASCII, Latin-1) is printed as an escape, as errors are already."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def stdout_for_answers() -> Iterator[None]:
    """Lead what is printed within to stderr, by libraries in C and by processes that are started within too.

    DeepSpeed logs to stdout, trackers greet there; who reads a command's answer there is to get nothing else.
    """
    out, err = sys.__stdout__, sys.__stderr__
    if out is None or err is None or sys.stdout is not out:  # a Python program has its own
        with redirect_stdout(sys.stderr):
            yield
        return
    out.flush()
    kept = os.dup(out.fileno())
    os.dup2(err.fileno(), out.fileno())
    try:
        yield
    finally:
        out.flush()
        os.dup2(kept, out.fileno())
        os.close(kept)


def quiet_libraries() -> None:
    """No bars and notes of libraries between ftscale's own lines. Call it before they are imported."""
    # bitsandbytes tells at import that an optional CPU kernel package is not installed
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers 5.23 has new names for these; peft 0.21 and transformers 5.20 know the older ones alone
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")
    # torch 2.13 has new names for collectives, and says so at each call; deepspeed 0.19.8 knows the older ones alone
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.\w+` is deprecated")
