"""Runs tests of a checkout in this process, which has not imported ftscale, and writes how each ended.

    python tests/outcomes.py CHECKOUT RESULTS TEST...

RESULTS becomes JSON: of each test "passed", "failed" (by an assertion of its own), or else the error that it came to.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class Outcomes:
    """A plugin of pytest."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report = yield
        if call.excinfo is None:
            if call.when == "call":
                self.found[item.nodeid] = report.outcome
        elif call.when == "call" and call.excinfo.errisinstance((AssertionError, pytest.fail.Exception)):
            self.found[item.nodeid] = "failed"
        else:
            self.found[item.nodeid] = f"{call.when}: {call.excinfo.exconly()}"
        return report


def main(checkout: Path, results: Path, tests: list[str]) -> int:
    assert "ftscale" not in sys.modules
    os.chdir(checkout)
    sys.path[:] = [
        path for path in sys.path if not Path(path, "ftscale/__init__.py").is_file() and Path(path).name != "tests"
    ]
    outcomes = Outcomes()
    code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[outcomes])
    results.write_text(json.dumps(outcomes.found))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
