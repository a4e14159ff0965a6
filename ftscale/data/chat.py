"""Conversations: rows of several forms to messages, and messages to tokens with the model's own as targets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftscale.base.errors import UserError, unknown_name
from ftscale.data.chat_spans import (
    Message,
    Renderer,
    end_of_turn,
    history_starts,
    prompt_text,
    turn_starts,
    unseen_prompt,
    written_spans,
)
from ftscale.data.formats.paths import nearest_path, relative_to
from ftscale.data.left_out import count_left_out
from ftscale.data.parts import Span, tokenize_parts

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
    unknown role, tool calls that are none.
    """
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            return _turns(row[column], column, role=None)
    if row.get("instruction") is not None:
        return _alpaca(row)
    messages = _turns(row.get("prompt"), "prompt", role="user")
    if row.get("completion") is not None:
        messages += _turns(row["completion"], "completion", role="assistant")
    return messages


def row_tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The functions that a row's `tools` column offers, as JSON schemas, or None. Raises UserError: not a list."""
    tools = row.get("tools")
    if not tools:
        return None
    parsed = _parsed(tools, "tools")
    if not isinstance(parsed, list) or not all(isinstance(tool, dict) for tool in parsed):
        raise UserError(f"tools = {_short(tools)} must be a list of functions, or JSON of one; mend the row.")
    for tool in parsed:
        if not isinstance(tool.get("function", {}), dict):
            raise UserError(f"tools: the function of {_short(tool)} must be an object with name and parameters.")
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
        raise UserError(
            f"task.chat_template = {setting!r} is not a file; {nearest_path(setting)}{relative_to(setting)}"
        )
    return path.read_text(encoding="utf-8")


def template_name(text: str) -> str:
    """A template in a few words: the name of a packaged one, or its beginning."""
    packaged = {path.read_text(encoding="utf-8"): path.stem for path in sorted(TEMPLATES.glob("*.jinja"))}
    return packaged.get(text) or _short(text)


@dataclass(frozen=True)
class Conversation:
    """A conversation in tokens, and what its template did with it."""

    input_ids: list[int]
    labels: list[int]
    """Ids where the model learns, -100 elsewhere."""
    said: int
    """Characters of the model's turns that are to be learned, white space aside."""
    left_out: int
    """Of these, the ones that the template leaves out of the text."""
    unseen_prompt: str
    """What the template's generation prompt ends with and the text does not have, e.g. an opened tag; "" = nothing."""


def encode_chat(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    targets: Targets,
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of `encode_conversation`."""
    found = encode_conversation(messages, tokenizer, targets=targets, template=template, tools=tools)
    return found.input_ids, found.labels


def encode_conversation(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    targets: Targets,
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> Conversation:
    """Token ids of a conversation, and labels: the id where the model learns, -100 elsewhere.

    Targets are what the model writes in its turns: from the generation prompt to the end-of-turn token, included.
    Turns without content are not. `targets`: all of these turns, the last one, or every token of the conversation.
    The ids before a turn are those of its prompt (`encode_prompt`), whatever follows. `template`: Jinja text; None =
    the tokenizer's own.
    Raises UserError: no template, or one of which the model's own part cannot be told.
    """
    render = _renderer(tokenizer, template, tools)
    text = render(messages)
    spoken = _spoken(messages)
    learned = [turn for turn in spoken if targets != "last" or turn == _own_turns(messages)[-1]]
    marked = bool(learned) and targets != "all" and GENERATION_MARK.search(render.template) is not None
    spans: list[Span] = []
    if not marked and targets != "all":
        spans = written_spans(text, messages, render, turns=learned)
    starts = dict(zip(learned, (start for start, _ in spans), strict=False))
    starts |= turn_starts(text, messages, render, turns=[turn for turn in spoken if turn not in starts])
    cuts = sorted(set(starts.values()))
    ids, offsets, counts = tokenize_parts(text, cuts, _fast(tokenizer))
    if targets == "all":
        labels = list(ids)
    elif marked:
        labels = _marked_labels(ids, offsets, messages, render, last=targets == "last")
    else:
        labels = [NO_TARGET] * len(ids)
        for span in spans:
            _label(labels, ids, offsets, span, first=counts[cuts.index(span[0])], render=render)
    texts = [text[start:stop] for start, stop in spans] or [text] * len(learned)
    left_out = [count_left_out(messages[turn], written) for turn, written in zip(learned, texts, strict=True)]
    last = next((turn for turn in reversed(learned) if turn in starts), None)
    unseen = "" if last is None else unseen_prompt(text, messages, render, turn=last, start=starts[last])
    return Conversation(ids, labels, sum(said for _, said in left_out), sum(missing for missing, _ in left_out), unseen)


def encode_prompt(
    messages: Sequence[Message],
    tokenizer: Any,
    *,
    template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Token ids up to where the model writes its last turn, or its next one if the last turn is not its own."""
    history = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    render = _renderer(tokenizer, template, tools)
    text = prompt_text(history, render)
    starts = set(history_starts(history, render, turns=_spoken(history)).values())
    return tokenize_parts(text, sorted(start for start in starts if start <= len(text)), tokenizer)[0]


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
    if role is None or content is None:
        raise UserError(
            f"{column}: the turn {_short(turn)} must have a role and a text (role and content, or from and value)."
        )
    if not isinstance(content, str):
        parts = isinstance(content, (list, tuple))
        fix = "join its parts into one text" if parts else "write it in quotes, or leave it out"
        raise UserError(f"{column}: the content {_short(content)} of a turn must be a text; {fix}.")
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(unknown_name(f"{column}: role", role, ROLES))
    if "tool_calls" in given and (calls := _calls(given.pop("tool_calls"), column)) is not None:
        given["tool_calls"] = calls
    return {"role": ROLES[role], "content": content, **given}


def _calls(calls: Any, column: str) -> list[dict[str, Any]] | None:
    """Tool calls, a list or JSON of one, each as its template takes it; None of a blank text."""
    parsed = _parsed(calls, f"{column}: tool_calls")
    if parsed is None:
        return None
    if not isinstance(parsed, (list, tuple)):
        raise UserError(f"{column}: tool_calls = {_short(calls)} must be a list of calls; mend the row.")
    return [_call(call, column) for call in parsed]


def _call(call: Any, column: str) -> dict[str, Any]:
    """A tool call with its arguments as a mapping, which is what templates write as JSON."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(
            f"{column}: the tool call {_short(call)} must be an object with the name of a function, or have one under "
            "function; mend the row."
        )
    given = function.get("arguments")
    arguments = _parsed(given, f"{column}: arguments of the tool call {function['name']!r}")
    if arguments is not None and not isinstance(arguments, dict):
        raise UserError(
            f"{column}: arguments of the tool call {function['name']!r} = {_short(given)} must be an object, or JSON "
            "of one; mend the row."
        )
    read = {**function, "arguments": arguments or {}}
    return read if function is call else {**call, "function": read}


def _parsed(value: Any, name: str) -> Any:
    """What a text holds as JSON, None where it is blank; any other value as it is. Raises UserError: broken JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} = {_short(value)} is not JSON: {error}; mend the row.") from error


def _alpaca(row: dict[str, Any]) -> list[Message]:
    instruction, more = row["instruction"], row.get("input")
    user = {"role": "user", "content": instruction}
    if more is not None and not isinstance(more, str):
        raise UserError(f"input = {_short(more)} must be a text; mend the row.")
    if more:  # kept apart as well: the Alpaca template has a place for it
        user = {"role": "user", "content": f"{instruction}\n{more}", "instruction": instruction, "input": more}
    if not isinstance(instruction, str):
        raise UserError(f"instruction = {_short(instruction)} must be a text; mend the row.")
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


def _own_turns(messages: Sequence[Message]) -> list[int]:
    """Numbers of the model's turns."""
    return [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]


def _spoken(messages: Sequence[Message]) -> list[int]:
    """Numbers of the model's turns that say or call something."""
    own = _own_turns(messages)
    return [turn for turn in own if messages[turn]["content"].strip() or messages[turn].get("tool_calls")]


def _fast(tokenizer: Any) -> Any:
    if not tokenizer.is_fast:
        raise UserError("model.processor: chats need a tokenizer that has a tokenizer.json (a fast one); convert it.")
    return tokenizer


def _label(labels: list[int], ids: list[int], offsets: list[Span], span: Span, *, first: int, render: Renderer) -> None:
    """Make targets of the tokens of a span; `first`: the number of tokens before it, which are the prompt's.

    One may reach beyond its end: an end-of-turn token can swallow the white space after it.
    """
    inside = [place for place in range(first, len(ids)) if offsets[place][0] < span[1]]
    assert inside, "a span holds the end-of-turn token at least"
    if ids[inside[-1]] != render.tokenizer.convert_tokens_to_ids(end_of_turn(render)):
        raise UserError(
            "task.chat_template: the end-of-turn token is not one token in the text; set another template, or add the "
            "template's tokens to the tokenizer."
        )
    for place in inside:
        labels[place] = ids[place]


def _marked_labels(
    ids: list[int], offsets: list[Span], messages: Sequence[Message], render: Renderer, *, last: bool
) -> list[int]:
    """Labels by the template's own {% generation %} marks: of each token with a character between them."""
    _, spans = render.marked(messages)
    inside = [any(begin < stop and end > start for start, stop in spans) for begin, end in offsets]
    runs = [found.span() for found in re.finditer("1+", "".join("1" if own else "0" for own in inside))]
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
    return labels
