"""How much of what the model said a chat template leaves out of the text, and so out of training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "tool_plan", "refusal")
"""Fields of a turn, besides its content and calls, in which data sets keep what a model wrote."""

NO_CHANCE = 12
"""Characters at the beginning of a content that stand in a text because the content does, and not by chance."""


def count_left_out(message: dict[str, Any], written: str) -> tuple[int, int]:
    """Characters of a turn that are not in the text, and all that it holds; white space does not count.

    `written`: what the text has of the turn. A content that is cut counts by its part between the longest end
    and a long beginning of it that are there; thoughts and the parts of tool calls count whole.
    """
    text = _squeezed(written)
    content = _squeezed(message["content"])
    missing, said = _missing(content, text), len(content)
    for part in dict.fromkeys(_other_parts(message)):
        size = len(_squeezed(part))
        said += size
        missing += 0 if any(_squeezed(form) in text for form in _forms(part)) else size
    return missing, said


def _other_parts(message: dict[str, Any]) -> Iterator[str]:
    for name in THOUGHTS:
        if isinstance(message.get(name), str):
            yield message[name]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        yield function["name"]
        yield from _leaves(function["arguments"])


def _leaves(value: Any) -> Iterator[str]:
    """Names and texts in the arguments of a call; how numbers are written is the template's choice."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def _forms(part: str) -> tuple[str, ...]:
    """A text as it is, and as JSON writes it."""
    return part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1]


def _missing(content: str, text: str) -> int:
    if content in text:
        return 0
    end = _longest(lambda size: content[len(content) - size :] in text, len(content))
    beginning = _longest(lambda size: content[:size] in text, len(content))
    return max(len(content) - end - (beginning if beginning >= NO_CHANCE else 0), 1)


def _longest(holds: Any, most: int) -> int:
    """The greatest size for which it holds, where it holds for all smaller ones."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _squeezed(text: str) -> str:
    return "".join(text.split())
