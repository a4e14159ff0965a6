"""Prompts, completions and texts in tokens, of tokenizers that put special tokens around a text by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from ftscale.base.errors import UserError
from ftscale.tasks.causal_rows import encode_row, encode_row_prompt

BEGIN, END = 1, 2
ROW = {"prompt": "Tom had a big", "completion": " red ball"}


def framed(shared: Path, single: str) -> Any:
    loaded = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    loaded.backend_tokenizer.post_processor = TemplateProcessing(single, None, [("<s>", BEGIN), ("</s>", END)])
    return loaded


@pytest.mark.parametrize("single", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_special_tokens_stand_where_they_stand_in_the_whole_text(shared: Path, single: str):
    tokenizer = framed(shared, single)
    found = encode_row(ROW, tokenizer, targets="assistant", template=None)
    bare = tokenizer("Tom had a big red ball", add_special_tokens=False)["input_ids"]
    begin = [BEGIN] if "<s>" in single else []
    assert found.input_ids == [*begin, *bare, END]
    prompt = encode_row_prompt({"prompt": ROW["prompt"]}, tokenizer, template=None)
    assert prompt == encode_row_prompt({"text": ROW["prompt"]}, tokenizer, template=None)
    assert prompt == [*begin, *tokenizer(ROW["prompt"], add_special_tokens=False)["input_ids"]]
    assert found.input_ids[: len(prompt)] == prompt
    assert found.labels == [-100] * len(prompt) + found.input_ids[len(prompt) :]
    text = encode_row({"text": "Tom had a big red ball"}, tokenizer, targets="assistant", template=None)
    assert text.input_ids == found.input_ids


@pytest.mark.parametrize(("prompt", "completion"), [("The answer is ", "yes"), ("Say:\n", "\nno"), ("x", "ylophone")])
def test_a_completion_is_written_as_it_is_behind_its_prompt(shared: Path, prompt: str, completion: str):
    for tokenizer in (framed(shared, "<s> $A </s>"), AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")):
        found = encode_row({"prompt": prompt, "completion": completion}, tokenizer, targets="assistant", template=None)
        asked = encode_row_prompt({"prompt": prompt}, tokenizer, template=None)
        assert found.input_ids[: len(asked)] == asked
        assert tokenizer.decode(found.input_ids, skip_special_tokens=True) == prompt + completion
        assert all(label != -100 for label in found.labels[len(asked) :])


def test_a_prompt_that_begins_with_the_tokenizers_own_beginning_is_refused_by_row(shared: Path):
    tokenizer = framed(shared, "<s> $A")
    row = {"prompt": "<s>Tom", "completion": " ran", "_where": "a.jsonl:3"}
    for encode in (
        lambda: encode_row(row, tokenizer, targets="assistant", template=None),
        lambda: encode_row_prompt(row, tokenizer, template=None),
    ):
        with pytest.raises(UserError, match="a.jsonl:3: the text begins with '<s>', which the tokenizer .*stories260K"):
            encode()
