"""Rows that a tokenizer gives up on, and lists of words that are too long to be read from a text."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftscale.base.errors import UserError
from ftscale.config.tasks.text_classification import TextClassificationSettings
from ftscale.tasks.rows import prepare_rows, words_of
from ftscale.tasks.text_classification import TextClassification


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){25}$"])
def test_a_regular_expression_of_the_tokenizer_that_tries_too_many_ways_is_told(pattern: str):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[PAD]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    task = TextClassification(TextClassificationSettings(labels=("x", "y"), max_length=8), tokenizer)
    row = {"text": "a", "label": "x", "_where": "a.csv:2"}
    assert prepare_rows(task, [row])[0].label == 0
    with pytest.raises(UserError, match=r"model\.processor: the tokenizer gives up on a row of a\.csv:2 to a\.csv:3"):
        prepare_rows(task, [row, {**row, "text": "a" * 60 + "b", "_where": "a.csv:3"}])


def test_a_text_of_megabytes_is_not_read_as_a_list_and_not_shown_whole():
    few, many = "['a', 'b']", "[" + "'a'," * 300_000 + "]"
    assert words_of({"words": few}, "words") == ["a", "b"]
    with pytest.raises(
        UserError, match=r"^a\.jsonl:1: words = .*\.\.\. must be a list of strings, one a word"
    ) as caught:
        words_of({"words": many, "_where": "a.jsonl:1"}, "words")
    assert len(str(caught.value)) < 1200
