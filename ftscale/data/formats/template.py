"""A text with names in braces, such as `{Body} {Question}`; `{{` and `}}` stand for braces."""

from __future__ import annotations

import re
from collections.abc import Callable

from ftscale.base.errors import UserError

MARK = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")

Part = tuple[str, bool]
"""A text, and whether it is the name of what is to be put there."""


def is_template(text: str) -> bool:
    """Tell whether a text has a brace, so that it is not taken as it stands."""
    return "{" in text or "}" in text


def parse_template(text: str, *, setting: str) -> list[Part]:
    """Return the texts and names of a template, in their order. Raises UserError for a brace without its other half."""
    parts: list[Part] = []
    done = 0
    for mark in MARK.finditer(text):
        parts.append((text[done : mark.start()], False))
        done = mark.end()
        if mark[1] is not None:
            parts.append((mark[1].strip(), True))
        elif len(mark[0]) == 2:
            parts.append((mark[0][0], False))
        else:
            raise UserError(
                f"{setting} = {text!r}: the brace at character {mark.start() + 1} must have a name and another brace; "
                f"write {{NAME}}, or {mark[0] * 2} for a brace itself."
            )
    parts.append((text[done:], False))
    return [part for part in parts if part[0]]


def filled(parts: list[Part], value_of: Callable[[str], str]) -> str:
    """Return the text of a template, with each name's value in its place."""
    return "".join(value_of(text) if is_name else text for text, is_name in parts)
