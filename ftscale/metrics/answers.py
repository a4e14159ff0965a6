"""How well answers match those that people gave: exact match and F1, as the scripts of SQuAD and MLQA count them."""

from __future__ import annotations

import math
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

import evaluate
from datasets import Sequence as ListOf
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe

ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "ar": r"\sال^|ال",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
}
"""Words that say nothing of an answer, as https://github.com/facebookresearch/MLQA has them."""
Words = list[str]
CHINESE = re.compile("[\u4e00-\u9fa5]")


class AnswerScores(MemoryMetric):
    """`exact_match` and `f1`, 0 to 1: means over the questions, of the given answer that matches best.

    `predictions`: a text a question; `references`: all answers that count. That is SQuAD 1.1's script. With `margins`
    it is SQuAD 2.0's (P. Rajpurkar, R. Jia and P. Liang, Know What You Don't Know, 2018): "" and no reference say that
    there is no answer; `answers` are the texts that are given if one is, and `margins` by how much having none goes
    before that. There are then also `exact_match` and `f1` over questions of one kind (`f1/has_answer`,
    `f1/no_answer`), `best_f1`, and `best_f1_threshold`, the margin up to which an answer must be given for it.
    `language`: see ARTICLES.
    """

    def _info(self) -> evaluate.MetricInfo:
        texts = Value("string")
        return describe("Scores of answers.", predictions=texts, references=ListOf(texts))

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        answers: Sequence[str] = (),
        margins: Sequence[float] | None = None,
        language: str = "en",
    ) -> dict[str, float]:
        wanted = [[words_of(text, language) for text in texts] for texts in references]
        if margins is None:
            pairs = [(words_of(guess, language), choices) for guess, choices in zip(predictions, wanted, strict=True)]
            return _means([(_exact(*pair), _f1(*pair, both_empty=0.0)) for pair in pairs], "")
        wanted = [[words for words in choices if words] or [[]] for choices in wanted]
        scores = _scores(predictions, wanted, language)
        found = _means(scores, "")
        for kind, has in (("has_answer", True), ("no_answer", False)):
            of_kind = [score for score, choices in zip(scores, wanted, strict=True) if any(choices) is has]
            found |= _means(of_kind, f"/{kind}") if of_kind else {}
        given = [f1 for _, f1 in _scores(answers, wanted, language)]
        return {**found, **_best_f1(given, [float(not any(choices)) for choices in wanted], margins)}


def answer_f1(given: str, wanted: Sequence[str], *, language: str) -> float:
    """Of one question the F1 of the answer that matches best; "" is right where no answer counts."""
    choices = [words for text in wanted if (words := words_of(text, language))] or [[]]
    return _f1(words_of(given, language), choices, both_empty=1.0)


def words_of(text: str, language: str) -> list[str]:
    """What is compared of a text: its words in lower case, without punctuation and articles."""
    ours = frozenset(string.punctuation) if language == "en" else punctuation()
    text = "".join(letter for letter in text.lower() if letter not in ours)
    if language in ARTICLES:
        text = re.sub(ARTICLES[language], " ", text)
    return CHINESE.sub(lambda found: f" {found[0]} ", text).split() if language == "zh" else text.split()


@cache
def punctuation() -> frozenset[str]:
    """Return all characters that Unicode calls punctuation, and ASCII's."""
    every = map(chr, range(sys.maxunicode + 1))
    return frozenset(string.punctuation) | {one for one in every if unicodedata.category(one).startswith("P")}


def _scores(texts: Sequence[str], wanted: Sequence[list[Words]], language: str) -> list[tuple[float, float]]:
    pairs = [(words_of(text, language), choices) for text, choices in zip(texts, wanted, strict=True)]
    return [(_exact(*pair), _f1(*pair, both_empty=1.0)) for pair in pairs]


def _exact(guess: Words, choices: Sequence[Words]) -> float:
    return max((float(guess == choice) for choice in choices), default=0.0)


def _f1(guess: Words, choices: Sequence[Words], *, both_empty: float) -> float:
    return max((_overlap(guess, choice, both_empty=both_empty) for choice in choices), default=0.0)


def _overlap(guess: Words, choice: Words, *, both_empty: float) -> float:
    if not guess or not choice:
        return both_empty if guess == choice else 0.0
    return 2 * sum((Counter(guess) & Counter(choice)).values()) / (len(guess) + len(choice))


def _means(scores: Sequence[tuple[float, float]], suffix: str) -> dict[str, float]:
    exact, f1 = zip(*scores, strict=True)
    return {f"exact_match{suffix}": sum(exact) / len(scores), f"f1{suffix}": sum(f1) / len(scores)}


def _best_f1(if_given: Sequence[float], if_none: Sequence[float], margins: Sequence[float]) -> dict[str, float]:
    """The greatest mean F1 of all thresholds, and the least of the thresholds that have it.

    Of each question its F1 if the answer is given, and if none is: one is given up to the threshold.
    """
    total = best = sum(if_none)
    threshold = math.nextafter(min(margins), -math.inf)
    order = sorted(range(len(margins)), key=lambda place: margins[place])
    for at, place in enumerate(order):
        total += if_given[place] - if_none[place]
        tied = at + 1 < len(order) and margins[order[at + 1]] == margins[place]
        if total > best and not tied:
            best, threshold = total, margins[place]
    return {"best_f1": best / len(margins), "best_f1_threshold": threshold}
