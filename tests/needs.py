"""What a test needs and does not find here, and what the campaign runs beyond an ordinary run."""

from __future__ import annotations

import itertools
import os
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

    Each next one is the first of the product that shows the most pairs not shown yet.
    """
    product = list(itertools.product(*axes))
    if ALL:
        return product
    chosen = list(first)
    left = set().union(*map(_shown, product)).difference(*map(_shown, chosen))
    while left:
        chosen.append(max(product, key=lambda combination: len(left & _shown(combination))))
        left -= _shown(chosen[-1])
    return chosen


def _shown(combination: Combination) -> set[Any]:
    """The pairs of values in it, each with its two axes."""
    return set(itertools.combinations(enumerate(combination), 2))
