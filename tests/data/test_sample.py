"""A sample comes back from where it is stored as it is to be collated."""

from __future__ import annotations

from typing import Any

import pytest

from ftscale.data.sample import Sample

FULL = Sample(
    {"input_ids": [1, 2, 3], "image_path": "a.png"},
    label=[0, 2],
    note={"places": [0, -1]},
    cost=3,
    counts={"class": 2, "box": 5},
    rows=(4, 6),
    truncated=True,
    facts={"hashes": [7, 8], "said": 9},
    where="a.csv:2 to a.csv:3",
)


def test_what_is_stored_are_the_inputs_and_columns_that_begin_with_an_underscore():
    stored = FULL.stored()
    assert {name for name in stored if not name.startswith("_")} == {"input_ids", "image_path"}
    assert sorted(name for name in stored if name.startswith("_count_")) == ["_count_box", "_count_class"]
    assert not {"_drop", "_truncated", "said"} & set(stored)


@pytest.mark.parametrize(
    ("sample", "lacking"),
    [
        (FULL, set()),
        (Sample({"input_ids": [1]}, counts=None), {"_label", "_note", "_rows", "_hashes", "_count_loss"}),
        (Sample({"input_ids": [1]}, label=0, counts={"loss": 0}), {"_note", "_rows", "_hashes"}),
    ],
)
def test_a_sample_comes_back_as_it_is_collated(sample: Sample, lacking: set[str]):
    stored: dict[str, Any] = sample.stored()
    assert not lacking & set(stored)
    again = Sample.of_stored(stored, number=3, epoch=1, seed=7)
    assert (again.inputs, again.label, again.note) == (sample.inputs, sample.label, sample.note)
    assert again.rows == sample.rows
    assert (again.number, again.epoch, again.seed) == (3, 1, 7)


def test_targets_are_those_of_the_first_term():
    assert FULL.targets == 2
    assert Sample(counts=None).targets == Sample().targets == 0
