"""Settings of the command line, `section.key=value`, laid over what a YAML file says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ftscale.base.errors import UserError
from ftscale.config.yaml_text import read_scalar, read_yaml

PLACE = re.compile(r"\[(\d+)\]")


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `data` with each `section.key=value` set; the last of two wins. Values are read as YAML.

    A number in the path is a place in a list: `data.train.0.path=new.csv` or `data.train[0].path=new.csv`; the place
    after the last appends.
    A text that stands for a section (`task: text_classification`) becomes that section first.

    Raises:
        UserError: for each override that has no `=`, no key, or leads through a value that is not a section.
    """
    problems: list[str] = []
    for override in overrides:
        try:
            path, value = _split(override)
            data = _set(data, path, value, override=override, at=())
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(*problems)
    return data


def _split(override: str) -> tuple[list[str], Any]:
    name, equals, text = override.partition("=")
    path = PLACE.sub(r".\1", name.strip()).split(".")  # data.train[0].path, as messages call it
    if not equals or not all(path):
        raise UserError(f"{override!r} must be section.key=value; write e.g. optimizer.lr=2e-4.")
    text = text.strip()
    if text[:1] in ("[", "{", "'", '"'):
        return path, read_yaml(text, source=f"the value of {override!r}")
    return path, read_scalar(text)


def _set(node: Any, path: list[str], value: Any, *, override: str, at: tuple[str, ...]) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    node = _as_section(node, key, at)
    here = ".".join(at)
    if isinstance(node, dict):
        return {**node, key: _set(node.get(key), rest, value, override=override, at=(*at, key))}
    if isinstance(node, list):
        if not key.isdecimal() or int(key) > len(node):
            raise UserError(
                f"{override!r}: {here} is a list of {len(node)}, so {key!r} must be a place in it; "
                f"write {here}.0 for the first."
            )
        place = int(key)
        old = node[place] if place < len(node) else None
        return [*node[:place], _set(old, rest, value, override=override, at=(*at, key)), *node[place + 1 :]]
    raise UserError(f"{override!r}: {here} = {node!r} is not a section and has no {key!r}; set {here} itself.")


def _as_section(node: Any, key: str, at: tuple[str, ...]) -> Any:
    """The section or list that `node` is short for, so that `key` can be set in it."""
    if at[:1] == ("stages",) and len(at) > 2:  # in a stage, as in the whole
        at = at[2:]
    if node is None:
        return [] if key == "0" else {}
    if isinstance(node, str) and (name := _short_form(at)):
        node = {name: node}
    if at == ("report",) and isinstance(node, (str, list, tuple)) and not key.isdecimal():
        return {"to": node}
    if isinstance(node, dict) and at[:1] == ("data",) and len(at) == 2 and key.isdecimal():
        return [node]
    return list(node) if isinstance(node, tuple) else node


def _short_form(at: tuple[str, ...]) -> str | None:
    """The key that a text stands for there: `model: NAME`, `data: {train: PATH}`, `data: {train: [PATH, PATH]}`."""
    if at in {("task",), ("model",)}:
        return "name"
    if len(at) in (2, 3) and at[0] == "data" and at[1] in ("train", "eval", "test"):
        return "path"
    return None
