from __future__ import annotations

import numpy as np

from ftscale.config.schema import BatchConfig
from ftscale.data.order import GlobalOrder, SourceRows


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
