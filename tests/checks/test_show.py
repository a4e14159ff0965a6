"""A check's report on a terminal."""

from __future__ import annotations

import pytest

from ftscale.checks.report import Report
from ftscale.checks.show import show


def test_rows_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]):
    show(Report(rows=[[("red \x1b[31m", False), ("title \x1b]0;owned\x07", True)]]))
    out = capsys.readouterr().out
    assert r"red \x1b[31m[[title \x1b]0;owned\x07]]" in out
    assert "\x1b" not in out
