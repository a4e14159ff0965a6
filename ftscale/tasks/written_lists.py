"""Lists and objects that a program wrote as text: as Python and JSON do, and NumPy's `['a' 'b']` and `[1. 0.]`."""

from __future__ import annotations

import ast
import json
import re
from contextlib import suppress
from typing import Any

OPEN, CLOSE = "[({", "])}"
ARRAY = re.compile(r"(?:array|frozenset|set)\((.*?)(?:, dtype=[\w'<>]+)?\)", re.DOTALL)
QUOTED = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"
QUOTED_BY_NUMPY = re.compile(rf"\[\s*{QUOTED}(?:\s+{QUOTED})+\s*\]")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
MOST_CHARACTERS = 2**20
"""Of a text that is read as a list: Python takes 250 bytes of memory a character for it; a book has 200,000 words."""
NESTED_ARRAY = re.compile(r"array\((\[.*?\])(?:,\s+dtype=[\w<>]+)?\)", re.DOTALL)
NUMBERS_BY_NUMPY = re.compile(rf"\[\s*{NUMBER}(?:\s+{NUMBER})*\s*\]")


def parse_list(text: str) -> list[Any] | None:
    """The items of a list (or tuple, or set, in sorted order) that a text writes; None where it writes none."""
    text = text.strip()
    if len(text) > MOST_CHARACTERS:
        return None
    if found := ARRAY.fullmatch(text):
        text = found[1].strip()
    if not text or text[0] not in OPEN or text[-1] not in CLOSE:
        return None
    if QUOTED_BY_NUMPY.fullmatch(text):  # to Python, neighbours are one string
        with suppress(SyntaxError):  # of an escape that Python does not know
            return [ast.literal_eval(item) for item in re.findall(QUOTED, text)]
    if NUMBERS_BY_NUMPY.fullmatch(text):
        return [float(item) for item in re.findall(NUMBER, text)]
    for read in (ast.literal_eval, json.loads):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, (set, frozenset)):
            return sorted(value, key=repr)
        return list(value) if isinstance(value, (list, tuple)) else None
    return None


def parse_written(text: str) -> Any:
    """A text that JSON or Python wrote of lists and objects as these; any other text as it is."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        return ast.literal_eval(NESTED_ARRAY.sub(r"\1", text))
    return text


def items_in(value: Any) -> list[Any]:
    """The items of a list, or of a text that writes one; of anything else none."""
    found = parse_list(value) if isinstance(value, str) else value
    return list(found) if isinstance(found, (list, tuple)) else []


def is_cut_list(text: str) -> bool:
    """Whether a text begins or ends like a list that is none, so that its first or last name would have a bracket."""
    text = text.strip()
    first, last = text.partition(",")[0], text.rpartition(",")[2]
    return (text[:1] in tuple(OPEN) and not any(mark in first for mark in CLOSE)) and (
        text[-1:] in tuple(CLOSE) and not any(mark in last for mark in OPEN)
    )
