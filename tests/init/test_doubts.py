"""Questions on a terminal, and what is assumed where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from ftscale.base.errors import UserError
from ftscale.cli import main
from ftscale.config import Config
from ftscale.config.load import load_config
from ftscale.init.doubts import Doubts, Option

KINDS, PLACES = ("noise", "leak"), ("north", "north", "south", "south")
ROWS = "".join(f"the pump {n} leaks,it was seen on day {3 * n},{KINDS[n % 2]},{PLACES[n % 4]}\n" for n in range(60))
NAMED = f"remark,detail,kind,group\n{ROWS}"
ENTER = ""


class Terminal:
    """A terminal in which the answers to all questions are typed already."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()

    def type(self, *lines: str) -> None:
        os.write(self.ours, "".join(f"{line}\n" for line in lines).encode())

    def shown(self) -> str:
        os.set_blocking(self.ours, False)
        return os.read(self.ours, 2**16).decode().replace("\r\n", "\n")

    def __enter__(self) -> Terminal:
        self.before = sys.stdin, sys.stdout
        sys.stdin = os.fdopen(os.dup(self.theirs), "r")
        sys.stdout = os.fdopen(os.dup(self.theirs), "w")
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        for stream in (sys.stdin, sys.stdout):
            stream.close()
        sys.stdin, sys.stdout = self.before


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal()
    yield found
    os.close(found.theirs)
    os.close(found.ours)


def init(work: Path, *options: str, terminal: Terminal | None = None, rows: str = NAMED) -> Config:
    """`ftscale init` for rows whose text, label and header are doubtful."""
    (work / "notes.csv").write_text(rows)
    out = work / "run.yaml"
    words = ["ftscale", "init", str(work / "notes.csv"), "--no-plan", "--out", str(out), *options]
    with patch.object(sys, "argv", words), terminal or nullcontext(), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    return load_config(out)


def of(config: Config) -> tuple[Any, ...]:
    [source] = config.data.train
    return source.header, source.columns, config.data.eval_ratio


def test_what_is_not_sure_is_asked_on_a_terminal(terminal: Terminal, tmp_path: Path):
    terminal.type(ENTER, "wrong", "group", "remark", "0.05")
    assert of(init(tmp_path, terminal=terminal)) == (True, {"text": "remark", "label": "group"}, 0.05)
    shown = terminal.shown()
    assert "The first line of notes.csv is: remark, detail, kind, group; is it a header or a row?" in shown
    assert "Please select one of the available options" in shown
    assert "  group  north\n" in shown
    assert "0.05  3 of 60 rows" in shown
    assert "not sure of" not in shown


def test_an_empty_line_takes_what_is_likely(terminal: Terminal, tmp_path: Path):
    terminal.type(ENTER, ENTER, ENTER, ENTER)
    assert of(init(tmp_path, terminal=terminal)) == (True, {"text": "detail", "label": "kind"}, 0.2)


def test_yes_asks_nothing_and_writes_it_down(terminal: Terminal, tmp_path: Path):
    assert of(init(tmp_path, "--yes", terminal=terminal)) == (True, {"text": "detail", "label": "kind"}, 0.2)
    assert "the label is taken to be kind, by its few values." in terminal.shown()
    assert "# - the label is taken to be kind, by its few values." in (tmp_path / "run.yaml").read_text()


def test_without_a_terminal_nothing_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert of(init(tmp_path)) == (True, {"text": "detail", "label": "kind"}, 0.2)
    assert "the first line of notes.csv is taken for a header; header: false says otherwise." in capsys.readouterr().out


def test_a_task_that_nothing_tells_is_asked_for(terminal: Terminal, tmp_path: Path):
    rows = "id,title,note\n" + "".join(f"a{n},the {n} pump leaks here,it was {n} at noon\n" for n in range(60))
    terminal.type("seq2seq", ENTER, ENTER, ENTER)
    config = init(tmp_path, terminal=terminal, rows=rows)
    assert (config.task.name, config.data.train[0].columns) == ("seq2seq", {"source": "title", "target": "note"})
    assert "What is to be learned from" in terminal.shown()


def test_a_terminal_that_closes_is_told(terminal: Terminal, tmp_path: Path):
    os.write(terminal.ours, b"\x04")
    with pytest.raises(AssertionError, match="2 == 0"):
        init(tmp_path, terminal=terminal)
    assert not (tmp_path / "run.yaml").exists()


def test_a_question_with_one_answer_is_none():
    def ask(question: str, options: Any, default: str) -> str:
        raise UserError("asked")

    doubts = Doubts(ask)
    assert doubts.settle("which?", options=[Option("a")], default="a", note="it is a.") == "a"
    assert doubts.notes == ["it is a."]
    with pytest.raises(UserError, match="asked"):
        doubts.settle("which?", options=[Option("a"), Option("b")], default="a", note=None)
