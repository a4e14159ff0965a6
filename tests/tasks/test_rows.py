"""Rows that a tokenizer gives up on, and lists of words that are too long to be read from a text."""

from __future__ import annotations

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftscale.base.errors import UserError
from ftscale.config.tasks.causal_lm import CausalLMSettings
from ftscale.config.tasks.text_classification import TextClassificationSettings
from ftscale.tasks.causal_lm import CausalLM
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


def test_what_groups_rows_goes_along_with_the_sample_and_is_no_column_of_the_task():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[PAD]": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    task = TextClassification(TextClassificationSettings(labels=("x", "y"), max_length=8), tokenizer)
    row = {"text": "a", "label": "x"}
    rows = [{**row, "language": "de"}, {**row, "language": None}, {**row, "language": 3}]
    samples = prepare_rows(task, rows, groups=["language", "label"])
    assert [sample.groups["language"] for sample in samples] == ["de", "", "3"]
    assert [sample.groups["label"] for sample in samples] == ["x", "x", "x"]
    plain = prepare_rows(task, [row])[0]
    assert {tuple(sample.facts["hashes"]) for sample in samples} == {tuple(plain.facts["hashes"])}


def test_a_sample_of_several_rows_has_the_group_that_they_share():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[PAD]": 2}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[PAD]")
    task = CausalLM(CausalLMSettings(max_length=8, join_texts=True), tokenizer)
    rows = [{"text": "a a", "language": language, "domain": "news"} for language in ("de", "en")]
    [sample] = prepare_rows(task, rows, groups=["language", "domain"])
    assert sample.groups == {"language": "several", "domain": "news"}
