"""Rows that a tokenizer gives up on."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftscale.config.schema import TextClassificationSettings
from ftscale.errors import UserError
from ftscale.tasks.rows import prepare_rows
from ftscale.tasks.text_classification import TextClassification


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){25}$"])
def test_a_regular_expression_of_the_tokenizer_that_tries_too_many_ways_is_told(pattern: str):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[PAD]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    task = TextClassification(TextClassificationSettings(labels=("x", "y"), max_length=8))
    row = {"text": "a", "label": "x", "_where": "a.csv:2"}
    assert prepare_rows(task, [row], tokenizer)[0]["labels"] == 0
    with pytest.raises(UserError, match=r"model\.processor: the tokenizer gives up on a row of a\.csv:2 to a\.csv:3"):
        prepare_rows(task, [row, {**row, "text": "a" * 60 + "b", "_where": "a.csv:3"}], tokenizer)
