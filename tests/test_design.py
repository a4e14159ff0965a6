"""docs/design.md says what a run does: the calls from ftscale.train down to the backward pass, and their number."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import tiny

import ftscale
from ftscale.config import parse_config
from ftscale.distributed.runtime import Distributed
from ftscale.run.train import build_loop

PAGE = Path(__file__).resolve().parents[1] / "docs/design.md"
MOST_CALLS = 5


@pytest.fixture(scope="module")
def way(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Our own functions on the stack when a backward pass begins, the outermost first."""
    ways: list[list[str]] = []
    backward = Distributed.backward

    def noting(self: Distributed, *arguments: Any, **options: Any) -> None:
        frames = [item.frame for item in reversed(inspect.stack(context=0)[1:])]
        functions = [f"{frame.f_globals['__name__']}.{frame.f_code.co_name}" for frame in frames]
        ways.append([name for name in functions if name.startswith("ftscale.")])
        backward(self, *arguments, **options)

    config = tiny.settings(shared, tmp_path_factory.mktemp("way"), batch={"global_size": 8, "micro_size": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distributed, "backward", noting)
        ftscale.train(parse_config(config, source="test"))
    assert len(ways) == 3 * 2
    assert all(other == ways[0] for other in ways)
    return ways[0]


def test_the_backward_pass_is_few_calls_away(way: list[str]):
    assert len(way) <= MOST_CALLS


def test_what_builds_the_loop_is_read_at_a_glance():
    assert len(inspect.getsource(build_loop).splitlines()) < 40


def test_the_page_names_these_functions_and_their_number(way: list[str]):
    text = PAGE.read_text()
    assert re.findall(r"^\d\. `([\w.]+)`", text, flags=re.MULTILINE) == way
    [number] = re.findall(r"From `ftscale\.train` down to the backward pass there are (\d+) calls", text)
    assert int(number) == len(way)


def test_the_page_names_files_that_are_there():
    named = re.findall(r"`([\w/]+\.py)`", PAGE.read_text())
    root = PAGE.parents[1]
    assert len(named) > 5
    assert [name for name in named if not (root / name).is_file() and not (root / "ftscale" / name).is_file()] == []
