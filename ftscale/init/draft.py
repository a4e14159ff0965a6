"""What a translation grows in: the other tool's keys that are still unread, and settings with their reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ftscale.base.errors import UserError
from ftscale.data.values import short

TRUE = ("true", "yes", "on", "1", "y")
FALSE = ("false", "no", "off", "0", "n", "none", "null", "")
WRITTEN = {  # values that TrainingArguments write although nobody asked for them
    "hub_token": "<HUB_TOKEN>",
    "push_to_hub_token": "<PUSH_TO_HUB_TOKEN>",
    "project": "huggingface",
    "accelerator_config": {
        "split_batches": False,
        "dispatch_batches": None,
        "even_batches": True,
        "use_seedable_sampler": True,
        "non_blocking": False,
        "gradient_accumulation_kwargs": None,
    },
}
FILL_IN = "FILL-IN"
"""Stands where the other tool's file does not say what a run of ftscale needs."""


@dataclass(frozen=True)
class Given:
    """A value of the other tool's."""

    value: Any
    said: str
    """Where it is from: the key, or whose default it is."""


@dataclass(frozen=True)
class Line:
    """A setting of ours."""

    value: Any
    why: str
    """The key that it came from, and what else is to be known."""


@dataclass
class Draft:
    """A configuration in the making.

    `values`: the other tool's keys. `names`: what it calls keys that have another name in TrainingArguments, by that
    name. `defaults`: its values where the file says none, by TrainingArguments' names.
    """

    tool: str
    file: str
    values: dict[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    processes: int | None = None
    """Processes that the other tool ran with; None = the user did not say."""
    lines: dict[str, Line] = field(default_factory=dict)
    """Our settings, by their dotted names."""
    lacks: dict[str, str] = field(default_factory=dict)
    """Keys without a counterpart, and why."""
    open: list[str] = field(default_factory=list)
    """What the user is to decide or fill in, a sentence each."""
    read: set[str] = field(default_factory=set)
    """Keys that were looked at."""

    def ask(self, *keys: str) -> Given | None:
        """Return the value of the first of these keys that the file has, else its tool's default; None = neither."""
        own = [self.names.get(key, key) for key in keys]
        self.read.update(own)
        for key in own:
            if self.values.get(key) is not None:
                return Given(self.values[key], key)
        for key, name in zip(keys, own, strict=True):
            if self.defaults.get(key) is not None:
                return Given(self.defaults[key], f"default of {name} in {self.tool}")
        return None

    def asked(self, *keys: str) -> bool:
        """Whether one of these keys says yes."""
        given = self.ask(*keys)
        return given is not None and self.flag(given)

    def put(self, setting: str, value: Any, why: str) -> None:
        """Set one of our settings."""
        self.lines[setting] = Line(value, why)

    def note(self, sentence: str) -> None:
        """Leave something to the user, once."""
        if sentence not in self.open:
            self.open.append(sentence)

    def value(self, setting: str) -> Any:
        """Return what one of our settings has been set to; None = it has not."""
        line = self.lines.get(setting)
        return None if line is None else line.value

    def copy(self, key: str, setting: str, read: Callable[[Given], Any]) -> None:
        """Set one of our settings to what a key says, where it or its tool's default says anything."""
        if (given := self.ask(key)) is not None:
            self.put(setting, read(given), given.said)

    def lack(self, why: str, *keys: str) -> None:
        """Note that keys have no counterpart; those that the file does not have, or switches off, are not told."""
        for key in (self.names.get(key, key) for key in keys):
            self.read.add(key)
            if key in self.values and not is_off(self.values[key]) and self.values[key] != WRITTEN.get(key):
                self.lacks[key] = why

    def ignore(self, *keys: str) -> None:
        """Leave out keys that change nothing in what is trained, without a word."""
        self.read.update(self.names.get(key, key) for key in keys)

    def unread(self) -> list[str]:
        """List the keys that nobody looked at and that say something."""
        return [key for key, value in self.values.items() if key not in self.read and not is_off(value)]

    def number(self, given: Given) -> float | int:
        """Return a number, also one that stands there as a text (2e-4 in YAML 1.1). Raises UserError for none."""
        value = given.value
        try:
            value = float(value) if isinstance(value, str) else value
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        except (ValueError, OverflowError):  # no number; a whole one of more digits than a float can hold
            is_number = False
        if not is_number:
            raise UserError(f"{given.said} = {short(given.value)} of {self.file} must be a number; correct it there.")
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 1 else value

    def whole(self, given: Given) -> int:
        """Return a whole number. Raises UserError for none."""
        value = self.number(given)
        if value != int(value):
            raise UserError(f"{given.said} = {given.value!r} of {self.file} must be a whole number; correct it there.")
        return int(value)

    def flag(self, given: Given) -> bool:
        """Return true or false, also where it stands there as a text. Raises UserError for what is neither."""
        text = str(given.value).strip().lower()
        if text in TRUE or text in FALSE:
            return text in TRUE
        raise UserError(f"{given.said} = {given.value!r} of {self.file} must be true or false; correct it there.")

    def text(self, given: Given) -> str:
        """Return a text. Raises UserError for what is none."""
        if isinstance(given.value, (dict, list)):
            raise UserError(f"{given.said} of {self.file} must be a text, and is a {type(given.value).__name__}.")
        return str(given.value)

    def names_of(self, given: Given) -> list[str]:
        """Return a list of names, also one that is written with commas."""
        if isinstance(given.value, str):
            return [part.strip() for part in given.value.split(",") if part.strip()]
        if isinstance(given.value, list):
            return [str(item) for item in given.value]
        raise UserError(f"{given.said} = {given.value!r} of {self.file} must be a list of names; correct it there.")

    def sections(self, given: Given) -> list[dict[str, Any]]:
        """Return a list of sections, also a single one, or the path of one. Raises UserError for none."""
        value = {"path": given.value} if isinstance(given.value, str) else given.value
        value = [value] if isinstance(value, dict) else value
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            raise UserError(
                f"{given.said} of {self.file} must be a list of sections with a path each; correct it there."
            )
        return value


def words(text: str) -> list[str]:
    """Return the words of a long list of keys."""
    return text.split()


def is_off(value: Any) -> bool:
    """Whether a value asks for nothing: null, false, 0, an empty text or list."""
    return value in (None, False, 0, "", "none", "no", "false") or value in ([], {})


def refuse(draft: Draft, method: str, said: str) -> UserError:
    """Return the error for a file of a method of learning that ftscale does not have."""
    return UserError(
        f"--from = {draft.file} is for {method} ({said}), which ftscale does not train: it learns from targets that "
        f"stand in the rows, not from preferences and rewards; go on with {draft.tool} for it."
    )
