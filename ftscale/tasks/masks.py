"""Which tokens of a sample are hidden, and what the model reads in their place: a function of a seed alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ftscale.modalities.collate import IGNORED


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden, as BERT's authors did it (J. Devlin et al., 2019, section 3.1)."""

    ratio: float
    """Share of the units, words or tokens, that are hidden."""
    mask_id: int
    others: np.ndarray
    """(n,) int64: the tokens of which a random one is drawn."""
    by_mask: float
    by_random: float
    """Shares of the hidden tokens in whose place stands the mask token, and a random one."""

    def number(self, units: int) -> int:
        """How many of so many units are hidden: the nearest to their share, but one at least of any."""
        return min(units, max(1, int(self.ratio * units + 0.5)))

    def __call__(self, ids: Sequence[int], units: Sequence[int], *, seed: int) -> tuple[list[int], list[int]]:
        """What the model reads, and the labels: the hidden tokens at their places, -100 elsewhere.

        units: for each token the unit that it is hidden with, -100 = never.
        """
        rng, of, tokens = np.random.default_rng(seed), np.asarray(units), np.asarray(ids)
        every = np.unique(of[of != IGNORED])
        hidden = np.isin(of, rng.choice(every, size=self.number(len(every)), replace=False))
        draws, instead = rng.random(len(tokens)), rng.choice(self.others, size=len(tokens))
        read = np.where(hidden & (draws < self.by_mask + self.by_random), instead, tokens)
        read = np.where(hidden & (draws < self.by_mask), self.mask_id, read)
        return read.tolist(), np.where(hidden, tokens, IGNORED).tolist()


def units_of(ids: Sequence[int], words: Sequence[int | None], *, never: Collection[int]) -> list[int]:
    """For each token the unit that it is hidden with: its word, or its own place where there are no words; -100 = none.

    never: tokens that are not hidden.
    """
    of = words or range(len(ids))
    return [IGNORED if token in never or unit is None else unit for token, unit in zip(ids, of, strict=True)]
