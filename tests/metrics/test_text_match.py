"""Exact match."""

from __future__ import annotations

import json

import pytest

from ftscale.metrics.text_match import ExactMatch, answer


def test_white_space_around_texts_does_not_count_but_case_does():
    scores = ExactMatch().compute(predictions=[" 42\n", "Paris", "a  b"], references=["42", "paris", "a b"])
    assert scores == {"exact_match": pytest.approx(1 / 3)}


def test_the_pattern_compares_the_last_answers_and_a_text_without_one_is_wrong():
    references = ["long way\n#### 18", "#### 3", "#### 5"]
    predictions = ["#### 3, no:\n#### 18", "3", "another way\n#### 5"]
    scores = ExactMatch().compute(predictions=predictions, references=references, pattern=r"#### (.+)")
    assert scores == {"exact_match": pytest.approx(2 / 3)}
    assert ExactMatch().compute(predictions=["none"], references=["none"], pattern="#### (.+)") == {"exact_match": 0.0}


def test_an_answer_is_the_first_group_or_the_whole_match():
    assert answer("a1 b22", r"[a-z](\d+)") == "22"
    assert answer("a1 b22", r"[a-z]\d+") == "b22"
    assert answer("a1", r"x(\d)?") is None
    assert answer(" a ", None) == "a"


def test_real_answers_of_gsm8k_are_the_numbers_behind_the_marks(shared):
    lines = (shared / "data/math/gsm8k/test.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert answer(answers[0], r"#### (.+)") == "18"
    short = [f"So it is {answer(text, '#### (.+)')}.\n#### {answer(text, '#### (.+)')} " for text in answers]
    assert ExactMatch().compute(predictions=short, references=answers, pattern=r"#### (.+)") == {"exact_match": 1.0}
    assert ExactMatch().compute(predictions=short, references=answers) == {"exact_match": 0.0}
