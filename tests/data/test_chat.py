"""Golden masks of chats: which text the model learns, template by template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import product
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ftscale.base.errors import UserError
from ftscale.data.chat import (
    NO_TARGET,
    encode_chat,
    encode_conversation,
    encode_prompt,
    normalize,
    read_template,
    row_tools,
    stop_ids,
)
from ftscale.tasks.causal_rows import encode_row, encode_row_prompt

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "It is 4."},
]
# writes the reasoning of the last turn only, as the templates of reasoning models do
REASONING = (
    "{%- for message in messages %}"
    "{%- set content = message.content %}{%- if message.role == 'assistant' and not loop.last %}"
    "{%- set content = content.split('</think>')[-1] %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + content | trim + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


@pytest.fixture(scope="module")
def qwen2(shared: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")


def gpt2_with(shared: Path, *tokens: str, **special: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(shared / "weights/tokenizers/gpt2")
    tokenizer.add_special_tokens({**special, "extra_special_tokens": list(tokens)})
    return tokenizer


def learned(tokenizer, messages, *, targets="assistant", template=None, tools=None) -> list[str]:
    """The stretches of text that are targets, each by its token ids; labels must equal the ids there."""
    ids, labels = encode_chat(messages, tokenizer, targets=targets, template=template, tools=tools)
    assert len(ids) == len(labels)
    stretches: list[list[int]] = []
    inside = False
    for token, label in zip(ids, labels, strict=True):
        if label != NO_TARGET:
            assert label == token
            stretches = stretches if inside else [*stretches, []]
            stretches[-1].append(token)
        inside = label != NO_TARGET
    return [tokenizer.decode(stretch) for stretch in stretches]


# ---------------------------------------------------------------- golden masks


def test_qwen2_with_its_own_template_learns_answers_and_end_tokens_id_by_id(qwen2):
    ids, labels = encode_chat(CHAT, qwen2, targets="assistant")
    start, end, newline, user, assistant = 151644, 151645, 198, 872, 77091
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    hello, four = [9707, 0], [2132, 374, 220, 19, 13]  # "Hello", "!"; "It", " is", " ", "4", "."
    expected = [
        ([start, 8948, newline, *qwen2(system)["input_ids"], end, newline], False),
        ([start, user, newline, 13048, end, newline, start, assistant, newline], False),
        ([*hello, end], True),
        ([newline, start, user, newline, 17, 10, 17, 30, end, newline, start, assistant, newline], False),
        ([*four, end], True),
        ([newline], False),
    ]
    assert ids == [token for tokens, _ in expected for token in tokens]
    assert labels == [token if target else -100 for tokens, target in expected for token in tokens]


def test_qwen2_learns_only_the_last_turn_or_every_token_where_asked(qwen2):
    assert learned(qwen2, CHAT, targets="last") == ["It is 4.<|im_end|>"]
    (everything,) = learned(qwen2, CHAT, targets="all")
    assert everything.startswith("<|im_start|>system\nYou are Qwen")
    assert everything.endswith("<|im_start|>assistant\nIt is 4.<|im_end|>\n")


def test_chatml_on_another_tokenizer(shared):
    tokenizer = gpt2_with(shared, "<|im_start|>", "<|im_end|>")
    chatml = read_template("chatml")
    ids, _ = encode_chat([SYSTEM, *CHAT], tokenizer, targets="assistant", template=chatml)
    assert tokenizer.decode(ids) == (
        "<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nIt is 4.<|im_end|>\n"
    )
    assert learned(tokenizer, [SYSTEM, *CHAT], template=chatml) == ["Hello!<|im_end|>", "It is 4.<|im_end|>"]


def test_llama2_learns_from_behind_the_bracket_to_the_end_token_and_has_one_bos_a_pair(shared):
    tokenizer = gpt2_with(shared, bos_token="<s>", eos_token="</s>")
    llama2 = read_template("llama2")
    ids, _ = encode_chat([SYSTEM, *CHAT], tokenizer, targets="assistant", template=llama2)
    assert tokenizer.decode(ids) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] 2+2? [/INST] It is 4. </s>"
    )
    assert ids.count(tokenizer.bos_token_id) == 2
    assert learned(tokenizer, [SYSTEM, *CHAT], template=llama2) == [" Hello! </s>", " It is 4. </s>"]


def test_llama3_learns_to_the_end_of_turn_not_to_the_end_of_text(shared):
    tokenizer = gpt2_with(
        shared,
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    )
    llama3 = read_template("llama3")
    ids, _ = encode_chat(CHAT, tokenizer, targets="assistant", template=llama3)
    assert tokenizer.decode(ids) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 4.<|eot_id|>"
    )
    assert learned(tokenizer, CHAT, template=llama3) == ["Hello!<|eot_id|>", "It is 4.<|eot_id|>"]
    eot, end_of_text = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    assert stop_ids(tokenizer, template=llama3) == sorted([eot, end_of_text])


def test_alpaca_ends_answers_with_the_tokenizers_end_token_and_has_a_place_for_the_input(shared):
    tokenizer = gpt2_with(shared)
    alpaca = read_template("alpaca")
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    ids, _ = encode_chat(normalize(row), tokenizer, targets="assistant", template=alpaca)
    assert tokenizer.decode(ids) == (
        "<|endoftext|>Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\nTranslate."
        "\n\n### Input:\nHund\n\n### Response:\ndog<|endoftext|>"
    )
    assert learned(tokenizer, normalize(row), template=alpaca) == ["dog<|endoftext|>"]
    assert learned(tokenizer, CHAT, template=alpaca) == ["Hello!<|endoftext|>", "It is 4.<|endoftext|>"]


def test_marks_of_the_template_are_used_where_it_has_them(qwen2):
    marked = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}"
        "{%- generation %}{{- m.content + '<|im_end|>' }}{%- endgeneration %}{%- else %}{{- m.content + '<|im_end|>' }}"
        "{%- endif %}{{- '\n' }}{%- endfor %}"
    )
    assert learned(qwen2, CHAT, template=marked) == ["Hello!<|im_end|>", "It is 4.<|im_end|>"]
    assert learned(qwen2, CHAT, template=marked, targets="last") == ["It is 4.<|im_end|>"]
    open_ended = marked.replace("m.content + '<|im_end|>' }}{%- endgeneration %}", "m.content }}{%- endgeneration %}")
    with pytest.raises(UserError, match="leave out the end-of-turn token"):
        learned(qwen2, CHAT, template=open_ended)


# ---------------------------------------------------------------- hard conversations and templates


def test_a_template_that_rewrites_earlier_turns(qwen2):
    chat = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>one more</think>2"},
        {"role": "user", "content": "And 2+2?"},
        {"role": "assistant", "content": "<think>two more</think>4"},
    ]
    assert learned(qwen2, chat, template=REASONING) == ["2<|im_end|>", "<think>two more</think>4<|im_end|>"]
    ids, _ = encode_chat(chat, qwen2, targets="assistant", template=REASONING)
    assert "one more" not in qwen2.decode(ids)


def test_a_template_whose_prompt_is_no_prefix_of_the_conversation(qwen2):
    # the system text goes before the last user turn; the prompt opens a thought that histories do not have
    template = (
        "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|im_start|>' }}"
        "{%- if loop.index0 == ns.last and messages[0].role == 'system' %}{{- messages[0].content + ' ' }}{%- endif %}"
        "{{- m.content }}{%- elif m.role == 'assistant' %}{{- '<|vision_start|>' + m.content + '<|im_end|>' }}"
        "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|vision_start|><think>' }}{%- endif %}"
    )
    ids, _ = encode_chat([SYSTEM, *CHAT], qwen2, targets="assistant", template=template)
    assert qwen2.decode(ids) == (
        "<|im_start|>Hi<|vision_start|>Hello!<|im_end|><|im_start|>Be brief. 2+2?<|vision_start|>It is 4.<|im_end|>"
    )
    assert learned(qwen2, [SYSTEM, *CHAT], template=template) == ["Hello!<|im_end|>", "It is 4.<|im_end|>"]


def test_a_header_is_no_target_though_the_template_knows_no_generation_prompt(qwen2):
    template = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    assert learned(qwen2, CHAT, template=template) == ["Hello!<|im_end|>", "It is 4.<|im_end|>"]
    assert qwen2.decode(encode_prompt(CHAT, qwen2, template=template)).endswith(
        "2+2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_content_that_holds_the_end_marker_or_another_turns_header_is_learned_whole(qwen2):
    tricky = "Write <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello! to end."
    chat = [CHAT[0], {"role": "assistant", "content": tricky}, *CHAT[2:]]
    assert learned(qwen2, chat) == [tricky + "<|im_end|>", "It is 4.<|im_end|>"]
    chat = [{"role": "user", "content": tricky}, CHAT[1]]
    assert learned(qwen2, chat) == ["Hello!<|im_end|>"]


def test_a_question_that_equals_the_answer_is_not_learned(qwen2):
    chat = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "yes"}]
    ids, labels = encode_chat(chat, qwen2, targets="assistant")
    (yes,) = qwen2("yes")["input_ids"]
    assert [label for token, label in zip(ids, labels, strict=True) if token == yes] == [-100, yes]


def test_a_turn_without_content_is_no_target(qwen2):
    chat = [*CHAT[:3], {"role": "assistant", "content": ""}]
    assert learned(qwen2, chat) == ["Hello!<|im_end|>"]
    assert learned(qwen2, chat, targets="last") == []


def test_unicode_content_is_learned_whole(qwen2, shared):
    content = "Gr\u00fc\u00dfe \U0001f469\u200d\U0001f680 \u2014 \u4f60\u597d, \u0645\u0631\u062d\u0628\u0627"
    chat = [{"role": "user", "content": "\u00e9 \U0001f600"}, {"role": "assistant", "content": content}]
    assert learned(qwen2, chat) == [content + "<|im_end|>"]
    gpt2 = gpt2_with(shared)
    assert learned(gpt2, chat, template=read_template("alpaca")) == [content + "<|endoftext|>"]


def test_white_space_that_offsets_leave_out_belongs_to_the_token_after_it(shared):
    from tokenizers.processors import ByteLevel

    tokenizer = gpt2_with(shared, bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)  # as in Llama-3 and RoBERTa
    assert learned(tokenizer, CHAT, template=read_template("llama2")) == [" Hello! </s>", " It is 4. </s>"]


def test_consecutive_turns_of_the_model_and_one_that_opens_the_chat(qwen2):
    first = {"role": "assistant", "content": "Welcome."}
    assert learned(qwen2, [first, *CHAT[:2], {"role": "assistant", "content": "Again."}]) == [
        "Welcome.<|im_end|>",
        "Hello!<|im_end|>",
        "Again.<|im_end|>",
    ]


def test_a_chat_that_ends_with_the_user_learns_what_came_before(qwen2):
    assert learned(qwen2, CHAT[:3]) == ["Hello!<|im_end|>"]
    assert learned(qwen2, CHAT[:3], targets="last") == ["Hello!<|im_end|>"]
    assert learned(qwen2, CHAT[:1]) == []


def test_tool_calls_are_learned_with_their_arguments_as_json(qwen2):
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = normalize(
        {
            "messages": [
                {"role": "user", "content": "2+2?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "4"},
                {"role": "assistant", "content": "It is 4."},
            ]
        }
    )
    tools = row_tools({"tools": '[{"name": "add", "parameters": {}}]'})
    assert learned(qwen2, messages, tools=tools) == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>',
        "It is 4.<|im_end|>",
    ]
    ids, _ = encode_chat(messages, qwen2, targets="assistant", tools=tools)
    assert '{"type": "function", "function": {"name": "add", "parameters": {}}}' in qwen2.decode(ids)


def test_arguments_of_calls_keep_the_order_that_the_user_wrote(qwen2):
    arguments = {"b": 1, "a": {"z": [1, {"y": 2, "x": None}], "c": "\u00fc"}}
    for given in (arguments, json.dumps(arguments)):
        messages = normalize(
            {
                "messages": [
                    {"role": "user", "content": "Add."},
                    {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": given}]},
                    {"role": "tool", "content": "3"},
                    {"role": "assistant", "content": "3."},
                ]
            }
        )
        assert learned(qwen2, messages) == [
            '<tool_call>\n{"name": "add", "arguments": {"b": 1, "a": {"z": [1, {"y": 2, "x": null}], "c": "\u00fc"}}}\n'
            "</tool_call><|im_end|>",
            "3.<|im_end|>",
        ]


def test_each_real_tool_conversation_learns_the_models_turns_and_nothing_else(qwen2, shared):
    rows = json.loads((shared / "data/sft/llamafactory_demo/glaive_toolcall_en_demo.json").read_text())
    assert len(rows) == 300
    for row in rows:
        messages = normalize(row)
        wanted = [
            turn["value"] + "<|im_end|>" for turn in row["conversations"] if turn["from"] in ("gpt", "function_call")
        ]
        assert learned(qwen2, messages, tools=row_tools(row)) == wanted
        ids, _ = encode_chat(messages, qwen2, targets="assistant", tools=row_tools(row))
        prompt = encode_prompt(messages, qwen2, tools=row_tools(row))
        assert qwen2.decode(ids[len(prompt) :]) == wanted[-1] + "\n"
        assert ids[: len(prompt)] == prompt


# ---------------------------------------------------------------- what a template leaves out

# as DeepSeek-R1's: the reasoning is cut out of every turn, and the prompt opens it
OPENS_THOUGHT = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- '<|im_start|>' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{%- else %}{{- m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|><think>\n' }}{%- endif %}"
)
KEEPS_THOUGHT = OPENS_THOUGHT.replace(".split('</think>')[-1]", "")


def told(qwen2, turn: dict, template: str | None) -> tuple[int, int, str]:
    messages = normalize({"messages": [CHAT[0], {"role": "assistant", **turn}]})
    found = encode_conversation(messages, qwen2, targets="assistant", template=template)
    return found.left_out, found.said, found.unseen_prompt


def test_characters_that_the_template_cuts_out_are_counted_without_white_space(qwen2):
    thought = {"content": "<think>\nreason R1\n</think>\n\nFour it is"}  # 7 + 8 + 8 of 32 + 2 + 2 characters
    assert told(qwen2, thought, OPENS_THOUGHT) == (23, 31, "<think>\n")
    assert told(qwen2, thought, KEEPS_THOUGHT) == (0, 31, "")
    assert told(qwen2, {"content": "Four it is"}, OPENS_THOUGHT) == (0, 8, "<think>\n")
    assert told(qwen2, {"content": " Four it is\n"}, read_template("llama3").replace("eot_id", "im_end")) == (0, 8, "")


def test_reasoning_and_calls_that_the_template_does_not_know_are_counted(qwen2):
    assert told(qwen2, {"content": "4", "reasoning_content": "two and two"}, read_template("chatml")) == (9, 10, "")
    call = {"name": "add", "arguments": {"first": 2, "unit": 'k"m'}}  # add first unit k"m: 15 characters
    assert told(qwen2, {"content": "", "tool_calls": [call]}, read_template("chatml")) == (15, 15, "")
    assert told(qwen2, {"content": "So:", "tool_calls": [call]}, None) == (0, 18, "")
    for name in ("reasoning", "thinking"):
        knows = KEEPS_THOUGHT.replace(
            "m.content + '<|im_end|>'", "(m.reasoning_content or '') + m.content + '<|im_end|>'"
        )
        assert told(qwen2, {"content": "4", name: "two and two"}, knows)[:2] == (0, 10)
        chat = [CHAT[0], {"role": "assistant", "content": "4", name: "two and two"}]
        assert learned(qwen2, chat, template=knows) == ["two and two4<|im_end|>"]


def test_with_marks_what_is_outside_the_text_is_counted(qwen2):
    marked = (
        "{%- for m in messages %}{{- m.role }}{% generation %}{{- m.content.split('</think>')[-1] + '<|im_end|>' }}"
        "{% endgeneration %}{%- endfor %}"
    )
    assert told(qwen2, {"content": "<think>a</think>b"}, marked)[:2] == (16, 17)


# ---------------------------------------------------------------- prompts


def test_a_prompt_ends_where_the_models_turn_begins(qwen2):
    ids, _ = encode_chat(CHAT, qwen2, targets="last")
    prompt = encode_prompt(CHAT, qwen2)
    assert ids == prompt + qwen2("It is 4.<|im_end|>\n")["input_ids"]
    assert encode_prompt(CHAT[:3], qwen2) == prompt


# ---------------------------------------------------------------- refusals


def test_a_template_that_never_ends_a_turn_is_refused(qwen2):
    template = "{%- for m in messages %}{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}"
    with pytest.raises(UserError, match="would not learn to stop"):
        learned(qwen2, CHAT, template=template)


def test_a_template_whose_end_token_the_tokenizer_lacks_is_refused(shared):
    with pytest.raises(UserError, match="no token of the tokenizer.*alpaca"):
        learned(gpt2_with(shared), CHAT, template=read_template("chatml"))


def test_a_template_that_ends_only_the_last_turn_is_refused_but_for_the_last_turn(qwen2):
    turns = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '\n' }}{%- endfor %}"
    template = turns + "{{- '<|im_end|>' }}"
    with pytest.raises(UserError, match="task.targets: last"):
        learned(qwen2, CHAT, template=template)
    assert learned(qwen2, CHAT, template=template, targets="last") == ["It is 4.\n<|im_end|>"]


def test_a_template_that_changes_answers_beyond_recognition_is_refused(qwen2):
    template = "{%- for m in messages %}{{- '<|im_start|>' + (m.content | upper) + '<|im_end|>' }}{%- endfor %}"
    with pytest.raises(UserError, match="task.chat_template"):
        learned(qwen2, CHAT, template=template)


def test_what_a_template_refuses_names_its_reason(qwen2):
    with pytest.raises(UserError, match="user, user: the turns must alternate"):
        learned(qwen2, [CHAT[0], CHAT[2]], template=read_template("llama2").replace("bos_token", "''"))


def test_a_tokenizer_without_a_template_needs_one(shared):
    with pytest.raises(UserError, match="task.chat_template = null.*alpaca, chatml, llama2, llama3"):
        learned(gpt2_with(shared), CHAT)


def test_a_template_is_a_name_a_path_or_a_text(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ messages }}")
    assert read_template(str(path)) == "{{ messages }}"
    assert read_template("{{ x }}") == "{{ x }}"
    assert "<|im_end|>" in read_template("chatml")
    assert read_template(None) is None
    with pytest.raises(UserError, match="did you mean 'chatml'"):
        read_template("chatlm")
    with pytest.raises(UserError, match="not a file"):
        read_template(str(tmp_path / "none.jinja"))


# ---------------------------------------------------------------- rows


def test_all_forms_of_rows_become_the_same_messages():
    expected = CHAT[:2]
    assert normalize({"messages": CHAT[:2]}) == expected
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    assert normalize({"conversations": sharegpt}) == expected
    assert normalize({"instruction": "Hi", "input": "", "output": "Hello!"}) == expected
    assert normalize({"prompt": "Hi", "completion": "Hello!"}) == expected
    assert normalize({"prompt": CHAT[:1], "completion": CHAT[1:2]}) == expected
    assert normalize({"instruction": "Hi"}) == expected[:1]
    assert normalize({"instruction": "Add", "input": "2 2", "output": "4"})[0]["content"] == "Add\n2 2"


def test_roles_of_sharegpt_tool_use():
    turns = [
        {"from": role, "value": "x"} for role in ("system", "human", "function_call", "observation", "tool", "gpt")
    ]
    roles = [message["role"] for message in normalize({"conversations": turns})]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "assistan", "content": "x"}]}, "did you mean 'assistant'"),
        ({"messages": [{"role": "user"}]}, "must have a role and a text"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages: the content 3 of a turn must be a text"),
        ({"conversations": "Hi"}, "must be a list of turns"),
        ({"messages": []}, "must be a list of turns"),
        ({"instruction": "x", "output": 3}, "output: the content 3 of a turn must be a text"),
    ],
)
def test_rows_that_are_no_chat_are_refused(row, reason):
    with pytest.raises(UserError, match=reason):
        normalize(row)


VALUES = [
    None, True, False, 0, -1.5, 1e308, "", " ", "text", "{", "3", "null", '{"a": 1}', [], [0.0], [None], ["a"], [[]],
    [{}], {}, {"a": None}, {"name": "f"}, {"role": "user", "content": "x"}, [{"role": "user", "content": "x"}],
    [{"type": "text", "text": "x"}], {"function": 3}, [{"function": {"name": 3}}], [{"name": "f", "arguments": "{"}],
    [{"name": "f", "arguments": ""}], [{"name": "f", "arguments": [1]}], "9" * 5000, "[" * 5000, "\x00", 10**400,
]  # fmt: skip
PLACES = ("messages", "conversations", "instruction", "input", "output", "prompt", "completion", "tools")
FIELDS = ("role", "from", "content", "value", "tool_calls", "name", "reasoning_content", "tool_call_id", "weight")


def rows_of_any_kind() -> Iterator[dict]:
    """A good row of each form, with one field after another replaced by each value."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    good = [
        {"messages": CHAT},
        {"messages": [CHAT[0], called]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"instruction": "Add", "input": "2 2", "output": "4"},
        {"prompt": CHAT[:1], "completion": CHAT[1:2]},
        {"prompt": "Hi", "completion": "Hello!"},
    ]
    for row, value in product(good, VALUES):
        yield from ({**row, place: value} for place in PLACES)
        for place, turns in row.items():
            if isinstance(turns, list):
                last = {field: {**turns[-1], field: value} for field in FIELDS}
                yield from ({**row, place: [*turns[:-1], turn]} for turn in (*last.values(), value))
    for value in VALUES:
        for field in ("id", "type", "function"):
            yield {"messages": [CHAT[0], {**called, "tool_calls": [{**call, field: value}]}]}
        for field in ("name", "arguments"):
            yield {"messages": [CHAT[0], {**called, "tool_calls": [{"function": {**call["function"], field: value}}]}]}
        yield {"messages": CHAT, "tools": [{"name": "f", "parameters": value, "description": value}]}
        yield {"messages": CHAT, "tools": [{"function": value}]}


def test_each_field_of_a_chat_of_each_type_is_read_or_refused_with_its_row(qwen2):
    def problems(row: dict) -> tuple[str, ...]:
        try:
            placed = {**row, "_where": "a.jsonl:7"}
            found = encode_row(placed, qwen2, targets="assistant", template=None)
            assert encode_row_prompt(placed, qwen2, template=None) or placed["prompt"] == ""
        except UserError as error:
            return error.problems
        assert len(found.input_ids) == len(found.labels)
        return ()

    outcomes = [problems(row) for row in rows_of_any_kind()]
    refused = [problem for found in outcomes for problem in found]
    assert [problem for problem in refused if not problem.startswith("a.jsonl:7: ")] == []
    assert len(refused) > 300
    assert len(outcomes) - len(refused) > 300


def test_calls_are_read_from_each_form_or_refused():
    def arguments(given: object) -> object:
        turn = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": given}}]}
        [message] = normalize({"messages": [turn]})
        return message["tool_calls"][0]["function"]["arguments"]

    assert arguments("") == arguments(" ") == arguments(None) == arguments("{}") == arguments("null") == {}
    assert arguments('{"b": 1, "a": null}') == {"b": 1, "a": None}
    with pytest.raises(UserError, match="messages: arguments of the tool call 'f' = '{\"a' is not JSON"):
        arguments('{"a')
    with pytest.raises(UserError, match=r"arguments of the tool call 'f' = '\[1\]' must be an object"):
        arguments("[1]")
    whole = json.dumps([{"name": "f", "arguments": {}}])
    [message] = normalize({"messages": [{"role": "assistant", "content": "x", "tool_calls": whole}]})
    assert message["tool_calls"] == [{"name": "f", "arguments": {}}]
    for calls in (3, [0.0], ["f"], [{"arguments": {}}], {"name": "f"}, True):
        with pytest.raises(UserError, match="messages: (the tool call|tool_calls = )"):
            normalize({"messages": [{"role": "assistant", "content": "x", "tool_calls": calls}]})


def test_a_value_that_json_does_not_have_is_refused_and_not_written_as_the_name_of_its_type(qwen2):
    call = {"name": "f", "arguments": {"when": datetime(2020, 1, 1)}}
    row = {
        "messages": [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}],
        "_where": "a.parquet row 1",
    }
    with pytest.raises(UserError, match="a.parquet row 1: a message holds what JSON cannot .*datetime"):
        encode_row(row, qwen2, targets="assistant", template=None)


def test_tools_that_are_no_list_are_refused():
    with pytest.raises(UserError, match="must be a list of functions"):
        row_tools({"tools": '"add"'})
    with pytest.raises(UserError, match="is not JSON"):
        row_tools({"tools": "[add"})
