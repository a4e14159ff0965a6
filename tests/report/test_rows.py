"""Pictures and tables of scored rows: the figures in them are scikit-learn's, scipy's, or worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from report.made import table
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ftscale.report.rows import Marked, Scored, Table, _interval, _perplexity, scored_rows

CLASSES = ["bad", "good", "</table>", "so so"]


def shown(unit: str = "tokens", **records: Any) -> Scored:
    return scored_rows(table(records), part="eval", unit=unit)


def chart(found: Scored, name: str) -> list[dict[str, Any]]:
    """The rows of data of a picture."""
    [spec] = [chart.spec for chart in found.charts if chart.name == name]
    return spec["data"]["values"]


def table_of(found: Scored, title: str) -> Table:
    [match] = [one for one in found.tables if one.title.startswith(title)]
    return match


@pytest.fixture
def classes() -> dict[str, list[Any]]:
    random.seed(0)
    labels = random.choices(CLASSES, [5, 3, 2, 1], k=200)
    guesses = [label if random.random() < 0.7 else random.choice(CLASSES) for label in labels]
    return {
        "label": labels,
        "prediction": guesses,
        "score": [random.uniform(0.25, 1) for _ in labels],
        "loss": [random.uniform(0, 3) for _ in labels],
    }


def test_confusions_and_scores_of_classes_are_those_of_scikit_learn(classes: dict[str, list[Any]]):
    found = shown(**classes)
    theirs = confusion_matrix(classes["label"], classes["prediction"], labels=CLASSES)
    ours = {(cell["label"], cell["prediction"]): cell["rows"] for cell in chart(found, "confusion-eval")}
    for row, label in enumerate(CLASSES):
        for column, guess in enumerate(CLASSES):
            assert ours.get((label, guess), 0) == theirs[row, column]
    precision, recall, f1, support = precision_recall_fscore_support(
        classes["label"], classes["prediction"], labels=CLASSES, zero_division=0
    )
    rows = {row[0]: row[1:5] for row in table_of(found, "Classes").rows}
    for place, label in enumerate(CLASSES):
        assert rows[label] == pytest.approx([support[place], precision[place], recall[place], f1[place]])
    assert found.facts["accuracy"] == pytest.approx(theirs.trace() / 200)
    assert found.facts["majority"] == pytest.approx(support.max() / 200)


def test_calibration_is_what_is_worked_out_by_hand():
    labels = ["a"] * 10
    guesses = ["a"] * 6 + ["b"] * 4
    found = shown(label=labels, prediction=guesses, score=[0.95] * 5 + [0.55] * 5, loss=[1.0] * 10)
    # of five at 0.95 all are right, of five at 0.55 one
    assert found.facts["calibration_error"] == pytest.approx(0.5 * 0.05 + 0.5 * abs(0.2 - 0.55))
    points = {point["chance"]: (point["right"], point["rows"]) for point in chart(found, "calibration-eval")}
    assert points == {0.95: (1.0, 5), 0.55: (0.2, 5)}


@pytest.mark.parametrize(("right", "number"), [(0, 5), (3, 5), (40, 41), (7, 1000)])
def test_intervals_of_shares_are_wilsons(right: int, number: int):
    values = np.array([1.0] * right + [0.0] * (number - right))
    found, theirs = _interval(values, "right"), binomtest(right, number).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((theirs.low, theirs.high), abs=2e-4)


def test_rows_are_divided_by_length_each_once(classes: dict[str, list[Any]]):
    lengths = [1] * 90 + list(range(2, 112))
    points = chart(shown(**classes, length=lengths), "length-eval")
    assert sum(point["rows"] for point in points) == 200


def test_the_largest_losses_come_first_and_the_surest_of_the_wrong_rows():
    found = shown(
        label=["a", "b", "a", "b", *["a"] * 40],
        prediction=["a", "a", "b", "b", *["a"] * 40],
        score=[0.9, 0.6, 0.8, 0.7, *[0.99] * 40],
        loss=[0.1, 2.0, 1.5, 0.2, *[0.01] * 40],
    )
    assert [row[-1] for row in table_of(found, "Rows with the largest loss").rows[:3]] == [
        "eval.csv:1",
        "eval.csv:2",
        "eval.csv:3",
    ]
    assert [row[-1] for row in table_of(found, "Wrong, and surest").rows] == ["eval.csv:2", "eval.csv:1"]


def test_numbers_are_dots_with_their_errors():
    found = shown(label=[1.0, 2.0, 4.0], prediction=[1.5, 2.0, 3.0], loss=[0.25, 0.0, 1.0])
    assert [dot["residual"] for dot in chart(found, "residuals-eval")] == [0.5, 0.0, -1.0]
    assert {one.name for one in found.charts} == {"predictions-eval", "residuals-eval", "length-eval"}


def test_of_tags_words_are_counted_and_their_places_told():
    found = shown(
        label=[["O", "B-X", "O"], ["O", "O"]],
        prediction=[["O", "O", "B-X"], ["O", "O"]],
        loss=[2.0, 0.1],
    )
    assert {(cell["label"], cell["prediction"]): cell["rows"] for cell in chart(found, "confusion-eval")} == {
        ("B-X", "O"): 1,
        ("O", "B-X"): 1,
    }
    first = table_of(found, "Rows with the largest loss").rows[0]
    assert first[1:3] == ["word 2: B-X, word 3: O", "word 2: O, word 3: B-X"]


def test_texts_stand_beside_each_other_and_losses_alone_have_no_classes():
    texts = {"label": [f"text {n}" for n in range(9)], "prediction": ["a"] * 9, "loss": [float(n) for n in range(9)]}
    assert table_of(shown(**texts), "Rows with the largest loss").names[1:3] == ["label", "prediction"]
    bare = shown(loss=[0.5, None, 2.0], targets=[3, 0, 5], accuracy=[0.5, None, 0.25])
    assert [row[0] for row in table_of(bare, "Rows with the largest loss").rows] == [2.0, 0.5]
    assert not bare.facts


def test_of_many_classes_the_most_confused_are_shown():
    labels = [f"class {number:03d}" for number in range(60) for _ in range(4)]
    guesses = list(labels)
    guesses[0], guesses[-1] = "class 059", "class 000"
    cells = chart(shown(label=labels, prediction=guesses, loss=[0.0] * 240), "confusion-eval")
    assert {("class 000", "class 059"), ("class 059", "class 000")} <= {
        (cell["label"], cell["prediction"]) for cell in cells
    }
    assert len({cell["label"] for cell in cells}) == 24


def test_sources_are_compared_where_there_are_several():
    places = [f"{name}.csv:{line}" for name in ("one", "two") for line in range(5)]
    found = shown(label=["a"] * 10, prediction=["a"] * 5 + ["b"] * 5, loss=[0.0] * 10, where=places)
    assert [row[:3] for row in table_of(found, "Right by file").rows] == [["two.csv", 5, 0.0], ["one.csv", 5, 1.0]]


def test_groups_are_a_table_each_the_worst_first():
    found = shown(
        label=["a"] * 6, prediction=["a", "b", "a", "a", "b", "b"], loss=[1.0] * 6, **{"group.language": list("xxyyzz")}
    )
    of_groups = table_of(found, "Right by language")
    assert [row[:3] for row in of_groups.rows] == [["z", 2, 0.0], ["x", 2, 0.5], ["y", 2, 1.0]]
    assert of_groups.names[0] == "language"


def test_perplexity_of_groups_and_positions_is_that_of_all_their_targets():
    losses, targets = [1.0, 3.0, 2.0, None], [10, 30, 5, 0]
    found = shown(
        loss=losses,
        targets=targets,
        accuracy=[0.5, 0.5, 0.5, None],
        losses_by_position=[[1.0], [2.0, 3.5], [None, 2.0], []],
        targets_by_position=[[10], [10, 20], [0, 5], []],
        **{"group.source": ["a", "a", "b", "b"]},
    )
    rows = {row[0]: row for row in table_of(found, "Perplexity by source").rows}
    assert rows["a"][2] == pytest.approx(np.exp((10 * 1 + 30 * 3) / 40), rel=1e-4)
    assert rows["b"][1:3] == [1, pytest.approx(np.exp(2), rel=1e-4)]
    points = chart(found, "position-eval")
    assert [point["tokens before"] for point in points] == ["1 to 15", "16 to 31"]
    assert [point["perplexity"] for point in points] == pytest.approx([np.exp(1.5), np.exp(80 / 25)], rel=1e-4)
    assert [point["rows"] for point in points] == [2, 2]


def test_the_interval_of_a_perplexity_holds_the_truth_as_often_as_it_says():
    """Rows of unlike numbers of targets and of losses that go along with them."""
    draw = np.random.default_rng(0)
    held = 0
    all_targets = draw.integers(1, 100, 100_000)
    all_losses = 1 + 0.01 * all_targets + draw.normal(0, 0.5, 100_000)
    truth = np.exp((all_losses * all_targets).sum() / all_targets.sum())
    for _ in range(400):
        chosen = draw.integers(0, 100_000, 80)
        about = _perplexity(all_losses[chosen], all_targets[chosen].astype(float))
        held += about["low"] <= truth <= about["high"]
    assert 0.92 <= held / 400 <= 0.98


def test_words_that_are_tagged_wrongly_are_marked():
    tags = {"label": [["O", "B-LOC", "O"]] * 4, "prediction": [["O", "B-LOC", "O"]] * 3 + [["O", "O", "O"]]}
    found = shown(**tags, loss=[0.1, 0.1, 0.1, 2.0], words=[None] * 3 + [["to", "Rome", "now"]])
    cell = table_of(found, "Rows with the largest loss").rows[0][3]
    assert isinstance(cell, Marked)
    assert [text for text, is_marked in cell.pieces if is_marked] == ["Rome [B-LOC, not O]"]
    assert "".join(text for text, _ in cell.pieces) == "to Rome [B-LOC, not O] now"


def test_scores_of_another_scale_are_compared_by_their_order():
    """Cosines of pairs that were judged from 1 to 5, with a loss of all pairs together; one pair is out of place."""
    labels = np.linspace(1, 5, 50)
    guesses = 0.5 + labels / 10
    guesses[40] = 0.55
    found = shown(label=labels.tolist(), prediction=guesses.tolist(), loss=[11.2] * 50)
    assert [chart.name for chart in found.charts] == ["predictions-eval"]
    assert "unlike scales" in found.charts[0].says
    assert table_of(found, "Rows most out of order").rows[0][1:3] == pytest.approx([labels[40], 0.55])
    assert not [one for one in found.tables if one.title.startswith("Rows with the largest loss")]
