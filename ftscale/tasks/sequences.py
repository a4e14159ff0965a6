"""Samples of several sequences of tokens: end to end in one list, with `lengths` that say how many tokens each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from ftscale.data.sample import Sample

LENGTHS = "lengths"
"""Of a sample's inputs: the tokens of each of its sequences."""
TOKENS = ("input_ids", "token_type_ids", "labels")
"""What there may be a value of for each token."""


def joined(sequences: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Inputs of a sample of these sequences, lists of tokens by name."""
    tokens = {name: [token for one in sequences for token in one[name]] for name in sequences[0]}
    return tokens | {LENGTHS: [len(one["input_ids"]) for one in sequences]}


def sequences_of(sample: Sample) -> list[dict[str, list[int]]]:
    """The sequences, as `joined` was given them."""
    bounds = list(pairwise(accumulate(sample.inputs[LENGTHS], initial=0)))
    tokens = {name: sample.inputs[name] for name in TOKENS if name in sample.inputs}
    return [{name: values[start:stop] for name, values in tokens.items()} for start, stop in bounds]
