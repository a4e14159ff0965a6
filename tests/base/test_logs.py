"""Who says what: rank 0 on the screen, every rank in its own file, and the first failure before all that follow it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftscale.base import logs
from ftscale.base.logs import close_log, log, note_failure, open_log, report_fault, setup_logging

GLOO = "[gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:40619: Connection reset by peer"


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    yield
    close_log()


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, *, rank: int) -> Path:
    monkeypatch.setenv("RANK", str(rank))
    setup_logging(rank=rank)
    open_log(folder, rank=rank)
    return folder / f"logs/rank-{rank:05d}.log"


def test_rank_0_speaks_at_info_and_the_others_in_warnings_with_rank_and_host(capsys: pytest.CaptureFixture[str]):
    for rank in (0, 3):
        setup_logging(rank=rank)
        log.info("a step of rank %d", rank)
        log.warning("a warning of rank %d", rank)
    lines = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["a step of rank 0", "a warning of rank 0", "[rank 3 on n2] a warning of rank 3"]


def test_each_ranks_file_has_what_was_said_before_it_could_be_written_too(tmp_path: Path):
    setup_logging(rank=3)
    log.info("before there was a run folder")
    assert not any(tmp_path.iterdir())
    open_log(tmp_path, rank=3)
    log.info("a step")
    text = (tmp_path / "logs/rank-00003.log").read_text()
    assert [line.partition(" INFO ")[2] for line in text.splitlines()] == [
        "before there was a run folder",
        f"rank 3 is process {os.getpid()} on n2",
        "a step",
    ]


def test_a_rank_writes_where_it_stands_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = start(tmp_path, monkeypatch, rank=1)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert "test_a_rank_writes_where_it_stands_when_asked" in file.read_text()


def fail(error: Exception, capsys: pytest.CaptureFixture[str]) -> str:
    """What a rank says that fails with this error."""
    try:
        raise error
    except type(error) as raised:
        report_fault(raised, exit_code=1)
    return capsys.readouterr().err


def failure(folder: Path) -> dict[str, object]:
    return json.loads((folder / "logs/failure.json").read_text())


def test_the_first_error_is_told_whole_and_what_follows_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    start(tmp_path, monkeypatch, rank=0)
    capsys.readouterr()
    start(tmp_path, monkeypatch, rank=3)
    lines = fail(ValueError("a mistake"), capsys).splitlines()
    assert lines[0] == "[rank 3 on n2] Traceback (most recent call last):"
    assert lines[-1] == "[rank 3 on n2] ValueError: a mistake"
    for rank, error, what in ((1, RuntimeError(GLOO), "lost another"), (2, KeyError("x"), "failed after another")):
        file = start(tmp_path, monkeypatch, rank=rank)
        told = fail(error, capsys)
        assert told.startswith(f"[rank {rank} on n2] error: {what} process: {type(error).__name__}")
        assert len(told.splitlines()) == 1
        assert "Traceback (most recent call last)" in file.read_text()
    assert failure(tmp_path)["error"] == "ValueError: a mistake"
    assert (failure(tmp_path)["rank"], failure(tmp_path)["host"], failure(tmp_path)["peer_lost"]) == (3, "n2", False)


def test_an_error_of_its_own_takes_the_place_of_a_lost_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    start(tmp_path, monkeypatch, rank=1)
    fail(RuntimeError(GLOO), capsys)
    assert failure(tmp_path)["peer_lost"] is True
    start(tmp_path, monkeypatch, rank=3)
    assert "Traceback" in fail(ValueError("a mistake"), capsys)
    assert failure(tmp_path)["error"] == "ValueError: a mistake"


def test_a_new_start_forgets_the_failure_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    start(tmp_path, monkeypatch, rank=1)
    fail(ValueError("a mistake"), capsys)
    start(tmp_path, monkeypatch, rank=0)
    assert not (tmp_path / "logs/failure.json").exists()


def test_without_a_run_folder_every_rank_tells_all_it_knows(capsys: pytest.CaptureFixture[str]):
    setup_logging(rank=0)
    assert note_failure(ValueError("a mistake"), exit_code=2)
    assert "Traceback" in fail(RuntimeError(GLOO), capsys)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:119] Timed out waiting 1800000ms for recv"), True),
        (RuntimeError("Connection refused"), False),  # of a download, say
        (ValueError("a mistake"), False),
    ],
)
def test_what_counts_as_a_lost_process(error: Exception, lost: bool):
    assert logs._is_peer_lost(error) is lost


def test_torchs_own_errors_of_collectives_count_as_a_lost_process():
    from torch.distributed import DistBackendError, DistStoreError

    assert logs._is_peer_lost(DistBackendError("NCCL communicator was aborted"))
    assert logs._is_peer_lost(DistStoreError("timed out"))


def test_nothing_but_answers_reaches_stdout():
    program = """
import os, subprocess, sys
from ftscale.base.logs import stdout_for_answers
held = sys.stdout  # as the logger of a library does
with stdout_for_answers():
    print("chatter", file=held)
    os.write(1, b"of C ")
    subprocess.run(["echo", "of a child"])
print("answer")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "answer\n"), done.stderr
    assert all(text in done.stderr for text in ("chatter", "of C", "of a child"))
