"""Every metric says what is better, and is right about it: perfect answers are better than wrong ones."""

import pytest

from ftscale.metrics.classification import ClassificationScores, MultiLabelScores
from ftscale.metrics.directions import HIGHER_IS_BETTER, higher_is_better
from ftscale.metrics.regression import RegressionScores
from ftscale.metrics.rouge import Rouge
from ftscale.metrics.sequence_tags import EntityScores
from ftscale.metrics.text_match import ExactMatch
from ftscale.metrics.top_k import TopKAccuracy
from ftscale.metrics.translation import TranslationScores

TEXTS, OTHER_TEXTS = ["the cat sat on the mat", "a dog ran home at night"], ["no", "not a word of it is so"]
SCORES = {  # a metric, references, right predictions, wrong ones
    "classes": (ClassificationScores(["answer", "soccer"]), [0, 1, 1], [0, 1, 1], [1, 0, 0]),
    "sets": (MultiLabelScores(["answer", "soccer"]), [[0, 1], [1, 0]], [[0, 1], [1, 0]], [[1, 0], [0, 1]]),
    "numbers": (RegressionScores(), [1.0, 2.0, 3.5], [1.0, 2.0, 3.5], [9.0, 8.0, 2.0]),
    "top": (TopKAccuracy(5), [7, 8], [[7], [8]], [[1], [2]]),
    "tags": (EntityScores(), [["B-x", "O"]], [["B-x", "O"]], [["O", "B-x"]]),
    "texts": (ExactMatch(), TEXTS, TEXTS, OTHER_TEXTS),
    "rouge": (Rouge(), TEXTS, TEXTS, OTHER_TEXTS),
    "translation": (TranslationScores(), TEXTS, TEXTS, OTHER_TEXTS),
}


@pytest.mark.parametrize("name", SCORES)
def test_perfect_answers_are_better_than_wrong_ones(name: str):
    metric, truth, right, wrong = SCORES[name]
    best = metric.compute(predictions=right, references=truth)
    worst = metric.compute(predictions=wrong, references=truth)
    assert set(best) == set(worst)
    for one in best:
        better = best[one] > worst[one] if higher_is_better(one) else best[one] < worst[one]
        assert better, one


def test_all_names_are_those_of_a_metric_or_of_the_loss():
    found = {
        one.split("/")[0]
        for metric, truth, right, _ in SCORES.values()
        for one in metric.compute(predictions=right, references=truth)
    }
    assert found | {"loss", "perplexity"} == set(HIGHER_IS_BETTER)


def test_the_name_of_a_class_says_nothing_of_the_direction():
    assert higher_is_better("f1/answer") is True  # has "wer" in it
    assert higher_is_better("recall/soccer") is True  # and this "cer"
    assert higher_is_better("mae") is False
    assert higher_is_better("word_error") is None
