"""Names of classes as users write them: a list, numbers to names, or a file of either."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Names = tuple[tuple[str, ...], tuple[int, ...] | None]
"""Names in the order of their ids, and the numbers that stand for them in the files; None where they are numbers."""


def names_and_ids(value: Any) -> Names:
    """Names, and the files' numbers for them, from a list, a mapping or the path of a file.

    White space around names is taken off. Raises ValueError, with the rule, for what is none of these.
    """
    if isinstance(value, str):
        value = _read(Path(value).expanduser())
    if isinstance(value, dict):
        by_number = {_number(key): name for key, name in value.items()}
        if len(by_number) < len(value):
            raise ValueError("it must give each number one name")
        numbers = sorted(by_number)
        names = tuple(_name(by_number[number]) for number in numbers)
        _check(names)
        return names, tuple(numbers)
    if not isinstance(value, (list, tuple)):
        raise ValueError("it must be a list of names, numbers to names, or a file of names")
    if not _are_names(value):
        raise ValueError("a list must hold texts")
    names = tuple(map(_name, value))
    _check(names)
    return names, None if any(_is_number(name) for name in names) else tuple(range(len(names)))


def only_names(value: Any) -> Any:
    """The names alone; None, and a list that has other things than names, stay for the schema to judge."""
    if value is None or (isinstance(value, (list, tuple)) and not _are_names(value)):
        return value
    return names_and_ids(value)[0]


def _read(path: Path) -> Any:
    """A JSON list or mapping, or a name a line."""
    if not path.is_file():
        raise ValueError(f"it is neither a list nor a file (looked for in {Path.cwd()}); write [first, second]")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise ValueError(f"the file cannot be read ({error})") from error
    return text.removesuffix("\n").split("\n")


def _are_names(items: Sequence[Any]) -> bool:
    """Whether all are texts, or all whole numbers: `[1, a]` may mean either."""
    return {type(item) for item in items} in ({str}, {int}, set())


def _number(key: Any) -> int:
    if isinstance(key, bool) or not (isinstance(key, int) or (isinstance(key, str) and _is_whole(key.strip()))):
        raise ValueError(f"{key!r} must be a whole number, which stands for a class in the files")
    return int(key)


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{value!r} must be a name; put it in quotes")
    return str(value).strip()


def _check(names: tuple[str, ...]) -> None:
    if "" in names:
        raise ValueError(f"name {names.index('') + 1} is empty")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} stands in it twice")


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
