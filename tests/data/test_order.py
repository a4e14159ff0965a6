from __future__ import annotations

import itertools

import numpy as np
import pytest

from ftscale.base.seeding import derive_seed
from ftscale.config.schema import BatchConfig
from ftscale.data.order import GROUPED_BATCHES, GlobalOrder, SourceRows


def order(
    *, rows: int = 10, size: int = 4, unit: str = "samples", weight: float = 1.0, shuffle: bool = True, seed: int = 0
):
    return GlobalOrder(
        np.full(rows, 3),
        [SourceRows(0, rows, weight)],
        batch=BatchConfig(global_size=size, unit=unit),
        shuffle=shuffle,
        seed=seed,
    )


def test_every_row_is_read_once_an_epoch():
    batches = order().epoch(0)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))


def test_the_order_is_a_function_of_seed_and_epoch():
    first, again = order().epoch(3), order().epoch(3)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert np.concatenate(first).tolist() != np.concatenate(order().epoch(4)).tolist()
    assert np.concatenate(first).tolist() != np.concatenate(order(seed=1).epoch(3)).tolist()


def test_without_shuffling_rows_come_as_they_stand():
    assert np.concatenate(order(shuffle=False).epoch(5)).tolist() == list(range(10))


def test_a_step_is_found_again_in_its_epoch():
    made = order()
    places = [made.locate(step) for step in range(7)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert made.num_steps(2.0) == 6
    assert made.num_steps(1.34) == 4


def test_weights_repeat_rows_and_draw_other_halves_each_epoch():
    made = order(weight=2.5)
    rows = np.concatenate(made.epoch(0))
    counts = np.bincount(rows, minlength=10)
    assert len(rows) == 25
    assert set(counts.tolist()) == {2, 3}
    assert set(rows[:0]) | set(np.flatnonzero(counts == 3)) != set(
        np.flatnonzero(np.bincount(np.concatenate(made.epoch(1)), minlength=10) == 3)
    )


def test_batches_by_targets_close_when_they_are_full():
    batches = order(rows=10, size=7, unit="targets").epoch(0)  # three targets a row: three rows reach seven
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
    assert order(rows=10, size=7, unit="targets").num_steps(3) == 12


def test_finding_a_step_draws_no_epoch_twice(monkeypatch):
    made, drawn = order(rows=40, size=7, unit="targets"), []
    draw = made._rows
    monkeypatch.setattr(made, "_rows", lambda epoch: drawn.append(epoch) or draw(epoch))
    for step in range(made.num_steps(3), 0, -1):
        made.locate(step - 1)
    assert drawn == [0, 1, 2]


def test_rows_of_like_length_come_together_and_each_once():
    lengths = np.random.default_rng(0).integers(1, 100, size=1000)
    made = GlobalOrder(
        np.full(1000, 3),
        [SourceRows(0, 1000, 1.0)],
        batch=BatchConfig(global_size=8),
        shuffle=True,
        seed=0,
        lengths=lengths,
    )
    first, second = made.epoch(0), made.epoch(1)
    assert sorted(np.concatenate(first).tolist()) == list(range(1000))
    assert made.size(0) == len(first) == 125
    spread = np.mean([np.ptp(lengths[batch]) for batch in first])
    assert spread < 5  # 80 in random batches
    means = [lengths[batch].mean() for batch in first]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # short and long batches in turn
    assert np.concatenate(first).tolist() != np.concatenate(second).tolist()


def test_batches_of_like_length_come_at_other_places_in_each_epoch():
    """Of rows with 0 to 39 tokens the batches are those with 0 to 3, 4 to 7, ...: in every epoch, in a new order."""
    made = GlobalOrder(
        np.full(40, 3),
        [SourceRows(0, 40, 1.0)],
        batch=BatchConfig(global_size=4),
        shuffle=True,
        seed=0,
        lengths=np.arange(40),
    )
    first, second = ([batch.tolist() for batch in made.epoch(epoch)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == [list(range(start, start + 4)) for start in range(0, 40, 4)]
    assert first != second


# ---------------------------------------------------------------- beside a plain way to the same


def plainly(
    targets: np.ndarray,
    sources: list[SourceRows],
    *,
    batch: BatchConfig,
    shuffle: bool,
    seed: int,
    lengths: np.ndarray | None,
    epoch: int,
) -> list[list[int]]:
    """The batches of an epoch as lists, a row at a time."""
    rng = np.random.default_rng(derive_seed(seed, "order", epoch))
    rows: list[int] = []
    for source in sources:
        own = list(range(source.start, source.stop))
        rows += own * int(source.weight)
        if part := source.weight - int(source.weight):
            drawn = rng.choice(own, size=max(1, round(part * len(own))), replace=False)
            rows += sorted(drawn.tolist())
    if shuffle:
        rows = rng.permutation(rows).tolist()
    if lengths is None:
        return cut(rows, targets, batch)
    random, sorted_rows = cut(rows, targets, batch), []
    for start in range(0, len(random), GROUPED_BATCHES):
        sorted_rows += sorted(itertools.chain(*random[start : start + GROUPED_BATCHES]), key=lambda row: lengths[row])
    batches = cut(sorted_rows, targets, batch)
    places = np.random.default_rng(derive_seed(seed, "batches", epoch)).permutation(len(batches))
    return [batches[place] for place in places]


def cut(rows: list[int], targets: np.ndarray, batch: BatchConfig) -> list[list[int]]:
    """A batch closes when it has its number of samples or targets."""
    batches: list[list[int]] = [[]]
    held = 0
    for row in rows:
        if held >= batch.global_size:
            batches.append([])
            held = 0
        batches[-1].append(row)
        held += 1 if batch.unit == "samples" else int(targets[row])
    return batches


@pytest.mark.parametrize("unit", ["samples", "targets"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 1.0), (0.3, 2.5)])
def test_batches_are_those_of_a_plain_loop(unit: str, shuffle: bool, grouped: bool, weights: tuple[float, float]):
    drawn = np.random.default_rng(5)
    targets, lengths = drawn.integers(0, 9, size=1500), drawn.integers(1, 60, size=1500)
    sources = [SourceRows(0, 400, weights[0]), SourceRows(400, 1500, weights[1])]
    settings = {"batch": BatchConfig(global_size=7, unit=unit), "shuffle": shuffle, "seed": 11}
    settings["lengths"] = lengths if grouped else None
    made = GlobalOrder(targets, sources, **settings)
    expected = [plainly(targets, sources, **settings, epoch=epoch) for epoch in range(3)]
    for epoch in (0, 2, 1, 1):
        assert [batch.tolist() for batch in made.epoch(epoch)] == expected[epoch]
        assert made.epoch(epoch)[3].tolist() == expected[epoch][3]
    assert [made.size(epoch) for epoch in range(3)] == [len(batches) for batches in expected]
    assert made.num_steps(2.0) == len(expected[0]) + len(expected[1])


def test_the_number_of_steps_in_samples_draws_no_epoch(monkeypatch):
    made = order(rows=10, weight=2.5)
    monkeypatch.setattr(made, "_rows", lambda epoch: pytest.fail("drawn"))
    assert made.num_steps(3) == 21
    assert made.locate(20) == (2, 6)


def test_a_source_of_which_nothing_was_kept_gives_no_rows():
    sources = [SourceRows(0, 0, 0.5), SourceRows(0, 3, 1.0)]
    made = GlobalOrder(np.ones(3), sources, batch=BatchConfig(global_size=2), shuffle=False, seed=0)
    assert [batch.tolist() for batch in made.epoch(0)] == [[0, 1], [2]]
    assert made.num_steps(1) == 2
