"""Conversations: rows of several forms to messages, and messages to tokens with the model's own as targets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ftscale.data.chat_spans import Message, Renderer, Span, end_of_turn, prompt_text, written_spans
from ftscale.errors import UserError, unknown_name

Targets = Literal["assistant", "last", "all"]

NO_TARGET = -100
TEMPLATES = Path(__file__).parent / "templates"
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
}
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


def normalize(row: dict[str, Any]) -> list[Message]:
    """The messages of a row: `role`, `content` (a text), and whatever else a template may read, e.g. `tool_calls`.

    The row has `messages` or `conversations` (turns with role and content, or with ShareGPT's from and value);
    or Alpaca's `instruction`, `input` (optional) and `output`; or `prompt` and `completion`, each a text or turns.
    What comes last (`output`, `completion`) may be missing. Raises UserError: a turn without role or text, an
    unknown role.
    """
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            return _turns(row[column], column, role=None)
    if row.get("instruction") is not None:
        return _alpaca(row)
    messages = _turns(row["prompt"], "prompt", role="user")
    if row.get("completion") is not None:
        messages += _turns(row["completion"], "completion", role="assistant")
    return messages


def row_tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The functions that a row's `tools` column offers, as JSON schemas, or None. Raises UserError: not a list."""
    tools = row.get("tools")
    if not tools:
        return None
    try:
        parsed = json.loads(tools) if isinstance(tools, str) else tools
    except ValueError as error:
        raise UserError(f"tools = {_short(tools)} is not JSON: {error}; mend the row.") from error
    if not isinstance(parsed, list) or not all(isinstance(tool, dict) for tool in parsed):
        raise UserError(f"tools = {_short(tools)} must be a list of functions, or JSON of one; mend the row.")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in parsed] or None


def read_template(setting: str | None) -> str | None:
    """The Jinja text for `task.chat_template`: a packaged name, the path of a .jinja file, or the text itself."""
    if setting is None or "{" in setting:
        return setting
    packaged = {path.stem: path for path in sorted(TEMPLATES.glob("*.jinja"))}
    path = packaged.get(setting, Path(setting))
    if path.suffix != ".jinja":
        raise UserError(unknown_name("task.chat_template", setting, packaged))
    if not path.is_file():
        raise UserError(f"task.chat_template = {setting!r} is not a file; correct the path.")
    return path.read_text(encoding="utf-8")


def encode_chat(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    targets: Targets,
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels: the id where the model learns, -100 elsewhere.

    Targets are what the model writes in its turns: from the generation prompt to the end-of-turn token, included.
    Turns without content are not. `targets`: all of these turns, the last one, or every token of the conversation.
    `template`: Jinja text; None = the tokenizer's own.
    Raises UserError: no template, or one of which the model's own part cannot be told.
    """
    render = _renderer(tokenizer, template, tools)
    text = render(messages)
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    turns = turns[-1:] if targets == "last" else turns
    turns = [turn for turn in turns if messages[turn]["content"].strip() or messages[turn].get("tool_calls")]
    if turns and targets != "all" and GENERATION_MARK.search(render.template):
        return _marked(messages, render, last=targets == "last")
    ids, offsets = _tokenize(text, tokenizer)
    if targets == "all":
        return ids, list(ids)
    labels = [NO_TARGET] * len(ids)
    for span in written_spans(text, messages, render, turns=turns):
        _label(labels, ids, offsets, span, end_id=tokenizer.convert_tokens_to_ids(end_of_turn(render)))
    return ids, labels


def encode_prompt(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Token ids up to where the model writes its last turn, or its next one if the last turn is not its own."""
    history = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    text = prompt_text(history, _renderer(tokenizer, template, tools))
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def stop_ids(tokenizer: Any, *, template: str | None = None) -> list[int]:
    """Token ids that end a generated text: the tokenizer's end token, and the template's where it has one."""
    stops = {tokenizer.eos_token_id} - {None}
    if template or tokenizer.chat_template:
        with suppress(UserError):  # a template without an end token is refused for chats; other texts need none
            stops.add(tokenizer.convert_tokens_to_ids(end_of_turn(_renderer(tokenizer, template, None))))
    return sorted(stops)


# ---------------------------------------------------------------- rows


def _turns(turns: Any, column: str, *, role: str | None) -> list[Message]:
    """Messages of a column. `role`: of a plain text; None = it must be a list of turns."""
    if role and isinstance(turns, str):
        return [{"role": role, "content": turns}]
    if not isinstance(turns, (list, tuple)) or not turns:
        raise UserError(f"{column} = {_short(turns)} must be a list of turns, each with a role and a content.")
    return [_message(turn, column) for turn in turns]


def _message(turn: Any, column: str) -> Message:
    given = {name: value for name, value in turn.items() if value is not None} if isinstance(turn, dict) else {}
    role = given.pop("role", given.pop("from", None))
    content = given.pop("content", given.pop("value", "" if given.get("tool_calls") else None))
    if role is not None and content is not None and not isinstance(content, str):
        raise UserError(
            f"{column}: the content {_short(content)} of a turn must be a text; write it in quotes, or leave it out."
        )
    if role is None or content is None:
        raise UserError(
            f"{column}: the turn {_short(turn)} must have a role and a text (role and content, or from and value)."
        )
    if role not in ROLES:
        raise UserError(unknown_name(f"{column}: role", role, ROLES))
    if given.get("tool_calls"):
        given["tool_calls"] = [_call(call) for call in given["tool_calls"]]
    return {"role": ROLES[role], "content": content, **given}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as a mapping, which is what templates write as JSON."""
    if "function" in call:
        return {**call, "function": _call(call["function"])}
    arguments = call.get("arguments")
    return {**call, "arguments": json.loads(arguments)} if isinstance(arguments, str) else call


def _alpaca(row: dict[str, Any]) -> list[Message]:
    user = {"role": "user", "content": row["instruction"]}
    if row.get("input"):  # kept apart as well: the Alpaca template has a place for it
        user = {
            "role": "user",
            "content": f"{row['instruction']}\n{row['input']}",
            "instruction": row["instruction"],
            "input": row["input"],
        }
    messages = [_message(user, "instruction")]
    if row.get("output") is not None:
        messages.append(_message({"role": "assistant", "content": row["output"]}, "output"))
    return messages


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ---------------------------------------------------------------- tokens


def _renderer(tokenizer: Any, template: str | None, tools: list[dict[str, Any]] | None) -> Renderer:
    template = template or tokenizer.chat_template
    if isinstance(template, dict):  # several by name: transformers takes "default", or "tool_use" where there are tools
        template = tokenizer.get_chat_template(None, tools)
    if not template:
        raise UserError(
            "task.chat_template = null, and the tokenizer has no template of its own; set task.chat_template to one of "
            + ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
            + ", or to a Jinja template."
        )
    return Renderer(tokenizer, template, json.dumps(tools))


def _tokenize(text: str, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """Ids, and for each token the characters it stands for."""
    if not tokenizer.is_fast:
        raise UserError("model.processor: chats need a tokenizer that has a tokenizer.json (a fast one); convert it.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets, previous = [], 0
    for start, end in encoded["offset_mapping"]:
        # some tokenizers (ByteLevel's trim_offsets) leave white space out of offsets: it belongs to the token after it
        offsets.append((min(start, previous), end))
        previous = max(previous, end)
    return encoded["input_ids"], offsets


def _label(labels: list[int], ids: list[int], offsets: list[Span], span: Span, *, end_id: int) -> None:
    """Make targets of the tokens that start within a span.

    A token that starts before it is the prompt's, since the model does not write it. One may reach beyond its end:
    an end-of-turn token can swallow the white space after it.
    """
    inside = [place for place, (start, _) in enumerate(offsets) if span[0] <= start < span[1]]
    assert inside, "a span holds the end-of-turn token at least"
    if ids[inside[-1]] != end_id:
        raise UserError(
            "task.chat_template: the end-of-turn token is not one token in the text; set another template, or add the "
            "template's tokens to the tokenizer."
        )
    for place in inside:
        labels[place] = ids[place]


def _marked(messages: Sequence[Message], render: Renderer, *, last: bool) -> tuple[list[int], list[int]]:
    """Ids and labels by the template's own {% generation %} marks."""
    encoded = render.tokenizer.apply_chat_template(
        list(messages),
        tools=json.loads(render.tools),
        chat_template=render.template,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"verbose": False},
    )
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    runs = [found.span() for found in re.finditer("1+", "".join(map(str, mask)))]
    known = set(render.tokenizer.added_tokens_encoder.values()) | set(render.tokenizer.all_special_ids)
    labels = [NO_TARGET] * len(ids)
    for start, stop in runs[-1:] if last else runs:
        written = [token for token in ids[start:stop] if render.tokenizer.decode([token]).strip()]
        if not written or written[-1] not in known:
            raise UserError(
                "task.chat_template: its {% generation %} marks leave out the end-of-turn token, so that the model "
                "would not learn to stop; move {% endgeneration %} behind it."
            )
        labels[start:stop] = ids[start:stop]
    return ids, labels
