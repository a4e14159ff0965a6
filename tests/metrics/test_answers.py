"""Scores of answers, worked out by hand, and SQuAD 2.0's threshold by trying all of them."""

from __future__ import annotations

import random

import pytest

from ftscale.metrics.answers import AnswerScores, words_of


def test_the_best_of_several_answers_counts():
    scores = AnswerScores().compute(
        predictions=["The Eiffel Tower!", "in 1066", "blue"],
        references=[["Eiffel Tower", "tower"], ["1066", "the year 1066"], ["red"]],
    )
    # F1: 1; of "in 1066" with "1066" 2 * 1 / (2 + 1); 0
    assert scores == pytest.approx({"exact_match": 1 / 3, "f1": (1 + 2 / 3) / 3})


def test_having_no_answer_is_right_where_there_is_none():
    scores = AnswerScores().compute(
        predictions=["", "", "red"],
        references=[[], ["red"], ["red"]],
        answers=["blue", "red", "red"],
        margins=[3.0, 2.0, -1.0],
    )
    assert scores == pytest.approx(
        {
            "exact_match": 2 / 3,
            "f1": 2 / 3,
            "exact_match/has_answer": 1 / 2,
            "f1/has_answer": 1 / 2,
            "exact_match/no_answer": 1.0,
            "f1/no_answer": 1.0,
            "best_f1": 1.0,  # up to a margin of 2 the answer is given
            "best_f1_threshold": 2.0,
        }
    )


def test_no_threshold_is_better_than_the_one_that_is_told():
    draw = random.Random(0)
    references = [["red"] if draw.random() < 0.6 else [] for _ in range(60)]
    answers = [draw.choice(["red", "blue", "red sky"]) for _ in references]
    margins = [round(draw.gauss(-1.0 if wanted else 1.0, 1.5), 1) for wanted in references]  # with ties

    def f1(threshold: float) -> float:
        given = [text if margin <= threshold else "" for text, margin in zip(answers, margins, strict=True)]
        return sum(hand(text, wanted) for text, wanted in zip(given, references, strict=True)) / len(given)

    def hand(text: str, wanted: list[str]) -> float:
        if not text or not wanted:
            return float(bool(text) == bool(wanted))
        return {"red": 1.0, "blue": 0.0, "red sky": 2 / 3}[text]

    scores = AnswerScores().compute(
        predictions=[""] * len(answers), references=references, answers=answers, margins=margins
    )
    assert scores["best_f1"] == pytest.approx(max(f1(threshold) for threshold in [-99.0, *margins]))
    assert f1(scores["best_f1_threshold"]) == pytest.approx(scores["best_f1"])


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("The cat's, hat.", "en", ["cats", "hat"]),
        ("«der Hund»", "de", ["hund"]),
        ("«the dog»", "en", ["«", "dog»"]),  # as SQuAD's script, which knows ASCII alone
        ("王芳 2019", "zh", ["王", "芳", "2019"]),
        ("¿la casa?", "es", ["casa"]),
        ("the dog", "other", ["the", "dog"]),
    ],
)
def test_words_are_compared_as_the_scripts_of_squad_and_mlqa_do(text: str, language: str, expected: list[str]):
    assert words_of(text, language) == expected
