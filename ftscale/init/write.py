"""A draft as YAML: each line with the key that it came from, and at the end what was left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ftscale.base.shown import visible
from ftscale.config.schema import Config
from ftscale.config.yaml_text import write_yaml
from ftscale.init.draft import Line

WIDTH = 116

Tree = dict[str, Any]
"""Sections by their names down to lines."""


def as_yaml(lines: dict[str, Line], *, head: Sequence[str], tail: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Write settings in the schema's order, each with its reason; `head` before them, `tail`: titles with lists."""
    order = {name: place for place, name in enumerate(Config.model_fields)}
    tree: Tree = {}
    for setting in sorted(lines, key=lambda setting: order[setting.split(".")[0]]):
        node = tree
        *sections, name = setting.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = lines[setting]
    text = [*(comment for line in head for comment in _comments(line, "")), ""]
    text += _block(tree, "")
    for title, items in tail:
        text += ["", *_comments(title, "")]
        text += [comment for item in items for comment in _comments(item, "", mark="# - ")]
    return "\n".join(text) + "\n"


def one_line(text: str) -> str:
    """Return a text without line ends and control characters, for a comment or a line on a terminal."""
    return " ".join(visible(text).split())


def _block(tree: Tree, indent: str) -> Iterator[str]:
    for name, node in tree.items():
        if isinstance(node, Line):
            yield from _setting(name, node, indent)
        else:
            yield f"{indent}{name}:"
            yield from _block(node, indent + "  ")


def _setting(name: str, line: Line, indent: str) -> Iterable[str]:
    text = [indent + part for part in write_yaml({name: line.value}).splitlines()]
    beside = f"{text[0]}  # {one_line(line.why)}"
    if len(text) == 1 and len(beside) <= WIDTH + 4:
        return [beside]
    return [*_comments(line.why, indent), *text]


def _comments(text: str, indent: str, *, mark: str = "# ") -> list[str]:
    further = "# ".ljust(len(mark))
    return textwrap.wrap(
        one_line(text),
        width=WIDTH,
        initial_indent=indent + mark,
        subsequent_indent=indent + further,
        break_long_words=False,
        break_on_hyphens=False,
    )
