"""What a test needs and does not find here, and what the campaign runs beyond an ordinary run."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import pytest

ALL = os.environ.get("FTSCALE_ALL") == "1"
"""Whether this is the campaign (launch/test.sh --all): triples instead of pairs, and tests marked `campaign`."""
MEET = 3 if ALL else 2
"""So many axes of a product have all combinations of their values among those that are run: five axes of seven tasks
have a thousand, which take hours, and every three of their values meet in two hundred."""

Combination = tuple[Any, ...]


def missing(why: str) -> NoReturn:
    """Skip the test, with the reason; fail it where FTSCALE_REQUIRE_SHARED is 1, as .ci/run sets it."""
    if os.environ.get("FTSCALE_REQUIRE_SHARED") == "1":
        pytest.fail(why)
    pytest.skip(why)


def in_campaign(*values: Any) -> Any:
    """A parameter that only the campaign runs."""
    return pytest.param(*values, marks=pytest.mark.campaign)


def meeting(*axes: Sequence[Any], first: Iterable[Combination] = ()) -> list[Combination]:
    """Combinations in which every two values of two axes meet, `first` among them; in the campaign every three.

    Each next one shows the most of these not shown yet, and among such what was seen least.
    """
    shown = {combination: _shown(combination) for combination in itertools.product(*axes)}
    chosen = list(first)
    seen = Counter(met for combination in chosen for met in _shown(combination))
    unseen = {met for of_one in shown.values() for met in of_one}.difference(seen)
    while unseen:
        best = max(shown, key=lambda it: (len(unseen & shown[it]), -sum(seen[met] for met in shown[it])))
        chosen.append(best)
        seen.update(shown[best])
        unseen -= shown[best]
    return chosen


def _shown(combination: Combination) -> set[Any]:
    """The pairs or triples of values in it, each with its axes."""
    return set(itertools.combinations(enumerate(combination), MEET))
