"""Values of every kind for the fuzz tests, how many are tried, and what may come of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import needs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ftscale.base.errors import UserError

LONGER = 200
"""So many times the examples of an ordinary run are tried in the campaign."""

ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\ud83d",
    "\ufeff",
    "nan",
    "null",
    "[]",
    "{}",
    "1e999",
    "{{ x }}",
    "../../x",
    "a\nb",
    "\x1b[2J",
)
ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, 5e-324, float("inf"), float("nan"))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(ODD_NUMBERS),
    st.integers(-3, 12),
    st.floats(),
    st.sampled_from(ODD_TEXTS),
    st.text(max_size=12),
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
"""Any value that JSON can hold, and NaN and infinity, which Python's reader takes."""


def budget(examples: int) -> Callable[[Any], Any]:
    """So many examples, the same ones at each ordinary run; the campaign draws others, many times as many."""
    return settings(
        max_examples=examples * (LONGER if needs.ALL else 1),
        derandomize=not needs.ALL,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def refused() -> Iterator[None]:
    """What happens inside works, or ends in a UserError: in sentences, not in a traceback."""
    with suppress(UserError):
        yield


def altered(value: Any) -> st.SearchStrategy[Any]:
    """The value with one of its parts, at any depth, left out or replaced by anything; or with a part more."""
    places = list(_places(value))
    return st.tuples(st.sampled_from(places), st.none() | st.tuples(json_values)).map(
        lambda change: _changed(value, change[0], change[1])
    )


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some flipped, cut off, put in or doubled; or others altogether."""
    size = len(content)
    at = st.integers(0, max(size - 1, 0))
    flipped = st.lists(st.tuples(at, st.integers(1, 255)), min_size=1, max_size=3).map(
        lambda flips: _flipped(content, flips)
    )
    cut = at.map(lambda place: content[:place])
    more = st.tuples(at, st.binary(max_size=6)).map(lambda put: content[: put[0]] + put[1] + content[put[0] :])
    return st.one_of(flipped, cut, more, st.binary(max_size=24), st.sampled_from(WHOLE))


WHOLE = (
    b"",
    b"{}",
    b"[]",
    b"3",
    b"null",
    b"\xff\xfe",
    b"[1]\n",
    b'{"a": 1' + b"0" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
)
"""Contents of whole files: those that are no object, and those that cost a reader its stack or its patience."""


def as_json(value: Any) -> bytes:
    """As Python writes it, NaN and halves of surrogates included."""
    return json.dumps(value).encode()


def _flipped(content: bytes, flips: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for place, bits in flips:
        if changed:
            changed[place] ^= bits
    return bytes(changed)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from _places(part, (*at, key))
    yield (*at, "more") if isinstance(value, dict) else at


def _changed(value: Any, place: tuple[Any, ...], by: tuple[Any] | None) -> Any:
    """`by`: what stands there instead; None = nothing."""
    if not place:
        return value if by is None else by[0]
    key, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        copy[key] = _changed(copy[key], tuple(rest), by)
    elif by is not None:
        copy[key] = by[0]
    elif isinstance(copy, list) or key in copy:
        del copy[key]
    return copy
