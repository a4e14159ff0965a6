from __future__ import annotations

import os
import pty
import signal
import time

import pytest

from ftscale.train.stop_request import Interrupted, StopRequest, listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_noted_and_a_second_does_no_harm(number: signal.Signals):
    with listening() as request:
        request.at_once = False
        assert not request
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert request
        assert request.reason == number.name


def test_before_ranks_wait_for_each_other_a_signal_ends_what_is_done():
    with listening() as request:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # while cleaning up: only noted
        assert request


def test_without_a_terminal_from_the_start_its_end_is_no_request():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    try:
        with listening() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            request.release()
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request
    finally:
        signal.signal(signal.SIGHUP, before)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


def test_nothing_fails_by_writing_to_a_terminal_that_is_gone():
    kept, (master, terminal) = os.dup(2), pty.openpty()
    os.dup2(terminal, 2)
    try:
        with listening() as request:
            request.at_once = False
            os.kill(os.getpid(), signal.SIGHUP)
            os.write(2, b"still here\n")
            assert os.read(master, 100) == b"still here\r\n"
            os.close(master)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(2, b"gone\n")
            os.kill(os.getpid(), signal.SIGHUP)
            os.write(2, b"into nothing\n")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(terminal)


def test_handlers_come_back():
    before = signal.getsignal(signal.SIGUSR1)
    with listening():
        assert signal.getsignal(signal.SIGUSR1) != before
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_end_of_the_jobs_time_is_a_request_that_the_clock_cannot_move(monkeypatch: pytest.MonkeyPatch):
    now = time.time()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now) + 101))
    request = StopRequest()
    request.set_deadline(100.0)
    monkeypatch.setattr(time, "time", lambda: now - 86_400)  # the clock is set back
    assert not request
    time.sleep(1.2)
    assert request
    assert request.reason == "time limit"


def test_no_deadline_without_a_launcher_that_names_it_or_with_0(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    request = StopRequest()
    request.set_deadline(1e9)
    assert not request
    monkeypatch.setenv("FTSCALE_END_TIME", "1")
    request.set_deadline(0.0)
    assert not request
    request.set_deadline(1.0)
    assert request
