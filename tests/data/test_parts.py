"""What a model is given is tokenised alone, whatever follows it: over templates, tokenizers, and texts in two parts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from ftscale.base.errors import UserError
from ftscale.data.chat import NO_TARGET, encode_chat, encode_prompt, read_template
from ftscale.data.parts import special_frame, tokenize_parts

TOKENIZERS = {  # byte-level, SentencePiece's BPE with byte fallback, unigram, WordPiece
    "gpt2": "weights/tokenizers/gpt2",
    "stories260K": "weights/stories260K",
    "t5": "weights/tokenizers/t5",
    "bert": "weights/tokenizers/bert-base-uncased",
}
TOKENS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
HEADERS = [  # what stands before the model's turn: most end in white space of some kind
    "ASSISTANT: ",
    "ASSISTANT:",
    "\n\n### Response:\n",
    "\n### Response: ",
    "Bot>  ",
    "A:\t",
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n\n",
    "<|im_start|> ",
    "answer: \n ",
]
ENDS = ["<|im_end|>", "<|im_end|>\n"]


def made(header: str, end: str, *, marked: bool = False) -> str:
    """A template whose turns of the model have this header and end; `marked`: with transformers' own marks."""
    own = "{% generation %}{{- m.content + '" + end + "' }}{% endgeneration %}"
    written = own if marked else "{{- m.content + '" + end + "' }}"
    return (
        "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '" + header + "' }}" + written + "{%- else %}"
        "{{- m.role + ': ' + m.content + '\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '" + header + "' }}{%- endif %}"
    )


MADE = [made(header, end) for header in HEADERS for end in ENDS]
MARKED = [made(header, "<|im_end|>", marked=True) for header in HEADERS]
SHIPPED = [read_template(name) for name in ("alpaca", "chatml", "llama2", "llama3")]
ANSWERS = ["yes", "Paris is it", "42", " a blank first", "\nOn a line", "don't", "...", "Gr\u00fc\u00dfe \u4f60", "I"]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> Any:
    loaded = AutoTokenizer.from_pretrained(shared / TOKENIZERS[request.param])
    names = {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": TOKENS}
    loaded.add_special_tokens(names)
    return loaded


def squeezed(text: str) -> str:
    return "".join(text.split())


def read(tokenizer: Any, text: str) -> str:
    """A text as this tokenizer can write it: some know no capitals, accents or rare letters."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return squeezed(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def chat(first: str, second: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Is it so?"},
        {"role": "assistant", "content": second},
    ]


def learned(tokenizer: Any, ids: list[int], labels: list[int]) -> list[str]:
    """The stretches of targets as text."""
    places = [place for place, label in enumerate(labels) if label != NO_TARGET]
    cuts = [0, *(at + 1 for at, (one, two) in enumerate(pairwise(places)) if two > one + 1), len(places)]
    stretches = [[ids[place] for place in places[start:stop]] for start, stop in pairwise(cuts)]
    return [tokenizer.decode(stretch, clean_up_tokenization_spaces=False) for stretch in stretches]


def test_over_templates_and_tokenizers_prompts_are_prefixes_and_answers_are_learned_whole(tokenizer):
    assert len(MADE) == 20
    for number, template in enumerate([*SHIPPED, *MADE, *MARKED]):
        for first, second in list(pairwise(ANSWERS))[number % 2 :: 2]:
            messages = chat(first, second)
            ids, labels = encode_chat(messages, tokenizer, targets="assistant", template=template)
            for stop in (2, 4):
                prompt = encode_prompt(messages[:stop], tokenizer, template=template)
                assert ids[: len(prompt)] == prompt, (template, first, second)
                assert labels[len(prompt)] != NO_TARGET, (template, first, second)
            options = {"chat_template": template, "tokenize": False}
            text = tokenizer.apply_chat_template(messages, **options)
            assert squeezed(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) == read(tokenizer, text)
            told = [squeezed(stretch) for stretch in learned(tokenizer, ids, labels)]
            for stretch, answer in zip(told, (first, second), strict=True):
                end = next(end for end in ("<|im_end|>", "<|eot_id|>", "</s>") if stretch.endswith(end))
                assert stretch.removesuffix(end) == read(tokenizer, answer), (template, answer)


def test_a_prompt_is_that_of_transformers(tokenizer):
    for template in [*SHIPPED, *MADE]:
        asked = chat("yes", "no")[:1]
        given = tokenizer.apply_chat_template(
            asked, chat_template=template, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert encode_prompt(asked, tokenizer, template=template) == given
        ids, _ = encode_chat(chat("Paris is it", "yes"), tokenizer, targets="last", template=template)
        assert ids[: len(given)] == given


# ---------------------------------------------------------------- special tokens of the tokenizer's own


def framed(shared: Path, single: str) -> Any:
    loaded = AutoTokenizer.from_pretrained(shared / "weights/stories260K")
    loaded.backend_tokenizer.post_processor = TemplateProcessing(single, None, [("<s>", 1), ("</s>", 2)])
    return loaded


def test_the_special_tokens_around_a_text_are_told_apart(shared: Path):
    assert special_frame(framed(shared, "$A")) == ([], [])
    assert special_frame(framed(shared, "<s> $A")) == ([1], [])
    assert special_frame(framed(shared, "$A </s>")) == ([], [2])
    assert special_frame(framed(shared, "<s> $A </s>")) == ([1], [2])
    bert = AutoTokenizer.from_pretrained(shared / TOKENIZERS["bert"])
    assert special_frame(bert) == ([bert.cls_token_id], [bert.sep_token_id])


@pytest.mark.parametrize("single", ["<s> <s> $A", "</s> $A", "$A </s> <s>", "<s> </s> $A </s>"])
def test_special_tokens_that_part_a_text_are_refused_by_the_tokenizers_name(shared: Path, single: str):
    with pytest.raises(UserError, match=r"model\.processor: the tokenizer TokenizersBackend of '.*stories260K'"):
        special_frame(framed(shared, single))


def test_a_text_in_one_part_is_tokenised_as_it_is(shared: Path):
    gpt2 = AutoTokenizer.from_pretrained(shared / TOKENIZERS["gpt2"])
    text = "The answer is yes"
    assert tokenize_parts(text, (), gpt2)[0] == gpt2(text)["input_ids"]
    ids, offsets, counts = tokenize_parts(text, [11, 14], gpt2)  # before "is", and before "yes", each behind its space
    assert [gpt2.decode(token) for token in ids] == ["The", " answer", " ", "is", " ", "yes"]
    assert [text[start:end] for start, end in offsets] == ["The", " answer", " ", "is", " ", "yes"]
    assert counts == [3, 5]
