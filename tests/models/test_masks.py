"""Masks of dropout: SplitMix64 as published, the right rate, no correlation, and rows that are told apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from ftscale.models import masks as masks_module
from ftscale.models.masks import CHUNK, Masks, RowsUnknownError

# SplitMix64's first numbers from the seed 1234567, as of the reference implementation (rosettacode.org, "Splitmix64")
PUBLISHED = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)
P = 0.1
SITE = 77


def splitmix64(seed: np.ndarray, count: int) -> np.ndarray:
    """The first `count` numbers of each seed, (..., count) uint64, by numpy's unsigned integers."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        word = seed.astype(np.uint64)[..., None] + steps
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))


def drawn(
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    step: int = 0,
    site: int = SITE,
    rows: list[int] | None = None,
    repeats: list[int] | None = None,
    bounds: list[int] | None = None,
    p: float = P,
) -> torch.Tensor:
    """Whether each element of states of a shape is dropped."""
    masks = Masks(seed)
    masks.step = step
    masks.enter(
        torch.tensor(rows if rows is not None else range(shape[0])),
        repeats=None if repeats is None else torch.tensor(repeats),
        bounds=None if bounds is None else torch.tensor(bounds, dtype=torch.int32),
    )
    return masks.draw(site).drop(torch.ones(shape), p) == 0


def test_numpys_splitmix64_is_the_published_one():
    assert tuple(map(int, splitmix64(np.array(1234567), 5))) == PUBLISHED


def test_a_key_draws_the_numbers_of_splitmix64_that_has_it_as_its_seed():
    keys = np.random.default_rng(0).integers(-(2**63), 2**63, size=(3, 5))
    lanes = splitmix64(keys, 4).view(np.int16)  # four little-endian lanes a word
    kept = round((1 - P) * 2**16)
    mask = masks_module._mask(torch.from_numpy(keys), (3, 5, 14), kept)
    assert np.array_equal(mask.numpy() != 0, lanes[..., :14] < kept - 2**15)
    # of a later head, the numbers 2**32 behind
    with np.errstate(over="ignore"):
        second = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2**32)
    mask = masks_module._mask(torch.from_numpy(keys), (3, 2, 5, 14), kept)
    assert np.array_equal(mask[:, 1].numpy() != 0, splitmix64(second, 4).view(np.int16)[..., :14] < kept - 2**15)


def test_states_are_those_of_plain_torch_with_the_mask_applied_by_hand():
    states = torch.randn(3, 6, 9, requires_grad=True)
    dropped = drawn((3, 6, 9))
    masks = Masks(0)
    masks.enter(torch.arange(3), repeats=None, bounds=None)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float64, 1e-15)):
        masks.enter(torch.arange(3), repeats=None, bounds=None)
        given = states.detach().to(dtype).requires_grad_()
        found = masks.draw(SITE).drop(given, P)
        upstream = torch.randn(3, 6, 9).to(dtype)
        found.backward(upstream)
        by_hand = given.detach().clone().requires_grad_()
        (by_hand * ~dropped * (2**16 / 58982)).backward(upstream)
        torch.testing.assert_close(found, by_hand * ~dropped * (2**16 / 58982), rtol=tolerance, atol=0)
        torch.testing.assert_close(given.grad, by_hand.grad, rtol=tolerance, atol=0)


def test_the_probability_is_met_within_a_ten_thousandth_and_the_mean_is_left():
    kept = masks_module._kept(P)
    assert abs(1 - kept / 2**16 - P) < 1e-4 / 2
    share = drawn((64, 128, 1024)).double().mean().item()  # 8 M draws: one standard deviation is 1.04e-4
    assert abs(share - P) < 4 * 1.04e-4
    total = torch.zeros(4, 3, 8)
    for step in range(2000):
        masks = Masks(3)
        masks.step = step
        masks.enter(torch.arange(4), repeats=None, bounds=None)
        total += masks.draw(SITE).drop(torch.ones(4, 3, 8), P)
    # the standard deviation of a mean is (0.1 / 0.9 / 2000) ** 0.5 = 0.0075; of the mean of all 96, a tenth
    assert (total / 2000 - 1).abs().max() < 5 * 0.0075
    assert abs(total.mean().item() / 2000 - 1) < 4 * 0.00076


NEIGHBOURS: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "rows": lambda: (drawn((400, 500), rows=list(range(400))), drawn((400, 500), rows=list(range(1, 401)))),
    "steps": lambda: (drawn((400, 500), step=5), drawn((400, 500), step=6)),
    "seeds": lambda: (drawn((400, 500), seed=0), drawn((400, 500), seed=1)),
    "sites": lambda: (drawn((400, 500), site=SITE), drawn((400, 500), site=SITE + 1)),
    "positions": lambda: (drawn((4, 101, 500))[:, :-1], drawn((4, 101, 500))[:, 1:]),
    "features": lambda: (drawn((400, 501))[:, :-1], drawn((400, 501))[:, 1:]),
    "words": lambda: (drawn((400, 504))[:, :-4], drawn((400, 504))[:, 4:]),
    "heads": lambda: (drawn((4, 9, 20, 300))[:, :-1], drawn((4, 9, 20, 300))[:, 1:]),
    "repeats": lambda: (drawn((400, 500)), drawn((400, 500), repeats=[1] * 400)),
}


def surprise(one: torch.Tensor, other: torch.Tensor) -> float:
    """The chi-square probability that two masks, pair by pair, are as far from independence."""
    pairs = torch.stack([one.flatten(), other.flatten()]).long()
    seen = torch.bincount(pairs[0] * 2 + pairs[1], minlength=4).double().numpy()
    p = 1 - masks_module._kept(P) / 2**16
    expected = len(pairs[0]) * np.array([(1 - p) ** 2, p * (1 - p), p * (1 - p), p**2])
    return float(chi2.sf(((seen - expected) ** 2 / expected).sum(), df=3))


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_masks_of_neighbours_are_independent(what: str):
    assert surprise(*NEIGHBOURS[what]()) > 1e-4


def test_a_weak_mix_is_found_out(monkeypatch: pytest.MonkeyPatch):
    """A single round of shift and xor leaves neighbours alike."""

    def weak(words: torch.Tensor) -> torch.Tensor:
        return words.bitwise_xor_(words >> 31)

    monkeypatch.setattr(masks_module, "_mixed", weak)
    found = {what: surprise(*pair()) for what, pair in NEIGHBOURS.items()}
    assert sum(value < 1e-12 for value in found.values()) > len(NEIGHBOURS) // 2, found


def test_a_row_keeps_its_mask_among_others_and_padded_or_flat():
    padded = drawn((3, 9, 10), rows=[5, 9, 12])
    flat = drawn((1, 14, 10), rows=[12, 5], bounds=[0, 5, 14])
    assert torch.equal(flat[0, :5], padded[2, :5])
    assert torch.equal(flat[0, 5:], padded[0])
    assert torch.equal(drawn((2, 10), rows=[9, 5]), padded[[1, 0], 0])  # a pooled state is its first token's
    assert torch.equal(drawn((1, 2, 10), rows=[9, 5], bounds=[0, 4, 9])[0], padded[[1, 0], 0])


@pytest.mark.parametrize("heads", [2, 5])
@pytest.mark.parametrize("chunk", [CHUNK, 700, 60])
def test_attention_of_flat_rows_is_that_of_padded_ones_however_it_is_drawn(
    monkeypatch: pytest.MonkeyPatch, heads: int, chunk: int
):
    padded = drawn((4, heads, 21, 21), rows=[3, 1, 4, 9])
    monkeypatch.setattr(masks_module, "CHUNK", chunk)
    assert torch.equal(drawn((4, heads, 21, 21), rows=[3, 1, 4, 9]), padded)
    masks = Masks(0)
    masks.enter(torch.tensor([1, 9, 3, 4]), repeats=None, bounds=torch.tensor([0, 7, 14, 35, 38]))
    first, second, third = masks.draw(SITE).of_attention(P, runs=[(7, 2), (21, 1), (3, 1)], heads=heads)
    assert torch.equal(first(torch.ones(2, heads, 7, 7)) == 0, padded[[1, 3], :, :7, :7])
    assert torch.equal(second(torch.ones(1, heads, 21, 21)) == 0, padded[:1])
    assert torch.equal(third(torch.ones(1, heads, 3, 3)) == 0, padded[2:3, :, :3, :3])


def test_a_row_that_stands_twice_in_a_step_has_two_masks_in_any_order():
    twice = drawn((2, 200), rows=[8, 8], repeats=[0, 1])
    assert not torch.equal(twice[0], twice[1])
    assert torch.equal(drawn((2, 200), rows=[8, 8], repeats=[1, 0]), twice.flip(0))
    assert torch.equal(drawn((1, 200), rows=[8]), twice[:1])


def test_a_module_that_is_called_twice_draws_twice_and_a_replay_the_same():
    masks, states = Masks(0), torch.ones(2, 300)
    masks.enter(torch.tensor([0, 1]), repeats=None, bounds=None)
    first = masks.draw(SITE).drop(states, P)
    _, again = masks.replayed()
    second, third = (masks.draw(SITE).drop(states, P) for _ in range(2))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations((first, second, third), 2))
    with again:
        assert torch.equal(masks.draw(SITE).drop(states, P), second)
    assert not torch.equal(masks.draw(SITE).drop(states, P), third)  # the fourth


def test_all_or_nothing():
    assert drawn((2, 50), p=1.0).all()
    assert drawn((200, 500), p=1e-9).sum() < 20  # one level of 65536: 1.5 of 100,000 are expected


@pytest.mark.parametrize("shape", [(5,), (4, 10), (6, 3, 10), (1, 5, 10)])
def test_states_whose_rows_cannot_be_told_are_refused(shape: tuple[int, ...]):
    with pytest.raises(RowsUnknownError, match="3 samples"):
        drawn(shape, rows=[1, 2, 3])
