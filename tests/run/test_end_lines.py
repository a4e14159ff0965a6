"""What a run says at its end."""

from __future__ import annotations

import io
import logging
import re
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest

from ftscale.base.logs import log
from ftscale.run.end_lines import end_lines, tell_end
from ftscale.run.folder import Result

SCORES = {"loss": 0.4, "test/loss": 0.5, "test/accuracy": 0.75, "test/f1_micro": 0.75, "test/f1/spam": 0.1}
BEST = {"step": 80, "metric": "accuracy", "value": 0.8125}
RESULT = Result("completed", 120, SCORES, BEST, 4000.0, "runs/a/model", {"test/accuracy": (0.7, 0.8)})


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, io.StringIO]:
    """A terminal and a run folder's log, as the log's handlers lead to them."""
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler(terminal), logging.StreamHandler(file)])
    monkeypatch.setattr("ftscale.base.logs._kept", log.handlers[1])
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setenv("COLUMNS", "120")
    log.setLevel(logging.INFO)
    return terminal, file


def test_the_end_tells_the_best_evaluation_the_test_scores_and_what_to_do_next():
    lines = end_lines(RESULT, Path("runs/a b"))
    assert lines[0].startswith("completed after 120 steps in 1h06m")
    assert lines[0].endswith(" GiB at most")
    assert lines[1:] == [
        "  best evaluation  step 80: accuracy 0.8125",
        "  test             loss 0.5000",
        "  test             accuracy 0.7500  (95 of 100 such samples: 0.7000 to 0.8000)",
        "  model            runs/a/model",
        "  to use it        ftscale predict 'runs/a b' INPUT",
    ]


def test_a_terminal_shows_a_table_and_the_log_has_the_lines(streams: tuple[io.StringIO, io.StringIO]):
    with redirect_stderr(streams[0]):
        tell_end(RESULT, Path("runs/a b"))
    terminal, file = (stream.getvalue() for stream in streams)
    assert file.splitlines() == end_lines(RESULT, Path("runs/a b"))
    assert "completed after 120 steps" in terminal
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in terminal.splitlines() if "│" in line]
    assert rows == [
        ["best evaluation", "step 80: accuracy 0.8125", ""],
        ["test", "loss 0.5000", ""],
        ["test", "accuracy 0.7500", "0.7000 to 0.8000 in 95 of 100 such samples"],
        ["model", "runs/a/model", ""],
        ["to use it", "ftscale predict 'runs/a b' INPUT", ""],
    ]


def shown(terminal: str) -> list[list[str]]:
    """The cells of the table's rows."""
    return [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in terminal.splitlines() if "─" not in line
    ]


def test_without_intervals_there_is_no_column_for_them(streams: tuple[io.StringIO, io.StringIO]):
    with redirect_stderr(streams[0]):
        tell_end(replace(RESULT, intervals={}), Path("runs/a b"))
    rows = [cells for cells in shown(streams[0].getvalue()) if cells]
    assert ["test", "accuracy 0.7500"] in rows
    assert {len(cells) for cells in rows} == {2}


def test_a_narrow_terminal_breaks_no_path_and_no_command(
    streams: tuple[io.StringIO, io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    folder = Path("/home/somebody/projects/mail/runs/2026-11-29/first")
    whole = str(folder / "model")
    with redirect_stderr(streams[0]):
        tell_end(replace(RESULT, model=whole), folder)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", streams[0].getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert f"model      {whole}" in lines
    assert lines[-2:] == ["to use it", f"ftscale predict {folder} INPUT"]
    assert ["", "", "in 95 of 100 such samples"] in shown("\n".join(lines))
    assert ["test", "accuracy 0.7500", "0.7000 to 0.8000"] in shown("\n".join(lines))


def test_where_nobody_looks_there_are_lines_alone(
    streams: tuple[io.StringIO, io.StringIO], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    with redirect_stderr(streams[0]):
        tell_end(RESULT, Path("runs/a b"))
    terminal, file = (stream.getvalue() for stream in streams)
    assert terminal == file
