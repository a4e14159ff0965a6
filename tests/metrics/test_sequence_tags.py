"""Entity scores in strict IOB2."""

from __future__ import annotations

import warnings

import pytest

from ftscale.metrics.sequence_tags import EntityScores


def test_an_entity_counts_only_when_type_and_both_ends_are_right():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O", "B-PER"]]
    predictions = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "O", "B-LOC"]]
    scores = EntityScores().compute(predictions=predictions, references=references)
    assert scores["precision"] == pytest.approx(2 / 4)
    assert scores["recall"] == pytest.approx(2 / 4)
    assert scores["f1"] == pytest.approx(0.5)
    assert scores["recall/LOC"] == 1.0
    assert scores["precision/LOC"] == pytest.approx(2 / 3)
    assert scores["f1/PER"] == 0.0
    assert scores["token_accuracy"] == pytest.approx(5 / 7)


def test_an_inside_tag_without_its_beginning_makes_no_entity():
    scores = EntityScores().compute(predictions=[["O", "I-PER"]], references=[["O", "B-PER"]])
    assert scores["f1"] == 0.0
    assert scores["token_accuracy"] == 0.5


def test_texts_without_entities_score_zero_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = EntityScores().compute(predictions=[["O", "O"], []], references=[["O", "O"], []])
    assert scores == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "token_accuracy": 1.0}
