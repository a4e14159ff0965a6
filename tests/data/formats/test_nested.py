"""Values inside objects and lists, by dotted paths."""

from __future__ import annotations

import math

import pytest

from ftscale.data.formats.nested import lists_in, value_at

VALUE = {"a": {"b": [{"c": 1}, "x"], "b.c": 2}, "none": None, "nan": math.nan, "a.b.c": {"d": 3}}


@pytest.mark.parametrize(
    ("path", "value"),
    [("a.b.0.c", 1), ("a.b.-1", "x"), ("a.b.c", {"d": 3}), ("none.x.y", None), ("nan.x", None), ("none", None)],
)
def test_a_path_leads_through_keys_and_numbers(path, value):
    assert value_at(VALUE, path) == value


def test_a_key_with_dots_goes_before_its_parts():
    assert value_at(VALUE["a"], "b.c") == 2
    assert value_at({"x": VALUE["a"]}, "x.b.c") == 2


@pytest.mark.parametrize(
    ("path", "words", "fix"),
    [
        ("a.bb", "has at a no 'bb' but 'b', 'b.c'", "did you mean 'a.b'?"),
        ("q", "has no 'q' but 'a', 'none', 'nan', 'a.b.c'", "correct the path."),
        ("a.b.2", "has at a.b a list of 2, in which is no item 2", "correct the path."),
        ("a.b.x", "has at a.b a list, in which 'x' must be a number from 0", "correct the path."),
        ("a.b.1.y", "has at a.b.1 a value of type str, in which is no 'y'", "correct the path."),
        ("a.b.\u0662", "has at a.b a list, in which '\u0662' must be a number from 0", "correct the path."),
    ],
)
def test_a_path_that_leads_nowhere_is_told_with_what_there_is(path, words, fix):
    with pytest.raises(LookupError) as caught:
        value_at(VALUE, path)
    assert caught.value.args == (words, fix)


def test_lists_are_found_a_few_levels_deep():
    assert lists_in({"a": [], "b": {"c": [1], "d": {"e": {"f": [], "g": {"h": []}}}}}) == ["a", "b.c", "b.d.e.f"]
    assert lists_in([1]) == []
