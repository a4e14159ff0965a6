"""What a test needs and does not find here, and what the campaign runs beyond an ordinary run."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import pytest

ALL = os.environ.get("FTSCALE_ALL") == "1"
"""Whether this is the campaign (launch/test.sh --all): whole products instead of pairs, and tests marked `campaign`."""

Combination = tuple[Any, ...]


def missing(why: str) -> NoReturn:
    """Skip the test, with the reason; fail it where FTSCALE_REQUIRE_SHARED is 1, as .ci/run sets it."""
    if os.environ.get("FTSCALE_REQUIRE_SHARED") == "1":
        pytest.fail(why)
    pytest.skip(why)


def in_campaign(*values: Any) -> Any:
    """A parameter that only the campaign runs."""
    return pytest.param(*values, marks=pytest.mark.campaign)


def pairs(*axes: Sequence[Any], first: Iterable[Combination] = ()) -> list[Combination]:
    """Combinations in which every two values of two axes meet, `first` among them; in the campaign their product.

    Each next one shows the most pairs not shown yet, and among such what was seen least.
    """
    product = list(itertools.product(*axes))
    if ALL:
        return product
    chosen = list(first)
    seen = Counter(pair for combination in chosen for pair in _shown(combination))
    while unseen := {pair for combination in product for pair in _shown(combination) if pair not in seen}:
        chosen.append(max(product, key=lambda it: (len(unseen & _shown(it)), -sum(seen[pair] for pair in _shown(it)))))
        seen.update(_shown(chosen[-1]))
    return chosen


def _shown(combination: Combination) -> set[Any]:
    """The pairs of values in it, each with its two axes."""
    return set(itertools.combinations(enumerate(combination), 2))
