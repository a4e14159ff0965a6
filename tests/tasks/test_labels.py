"""Class names: their numbers are the same whatever order the rows come in."""

from __future__ import annotations

from itertools import permutations

import pytest

from ftscale.tasks.labels import sorted_names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("nan", "3", "1", "2"), ("1", "2", "3", "nan")),
        (("NaN", "-nan", "10", "9"), ("-nan", "10", "9", "NaN")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("1", "1.0", "01"), ("01", "1", "1.0")),
        (("inf", "-inf", "5", "infinity"), ("-inf", "5", "inf", "infinity")),
        (("10", "9", "a"), ("10", "9", "a")),
        (("0", "-0", "0.0"), ("-0", "0", "0.0")),
    ],
)
def test_classes_have_one_order(names, expected):
    assert {sorted_names(order) for order in permutations(names)} == {expected}


def test_a_set_of_any_hash_seed_is_put_in_one_order():
    class InsertionOrder(str):
        """A name whose hash the test chooses, as PYTHONHASHSEED does."""

        __slots__ = ("number",)

        def __hash__(self) -> int:
            return self.number

    orders = set()
    for numbers in permutations(range(4)):
        names = []
        for name, number in zip(("nan", "3", "1", "2"), numbers, strict=True):
            made = InsertionOrder(name)
            made.number = number
            names.append(made)
        orders.add(tuple(map(str, sorted_names(names))))
    assert orders == {("1", "2", "3", "nan")}
