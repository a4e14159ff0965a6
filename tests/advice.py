"""The advice of a message, followed by a machine: settings of the command line as the message says to write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

SETTING = r"[a-z_]+(?:\.[a-z_0-9]+|\[\d+\])*"
VALUE = r"(?:: |=)(\{[^}]*\}|[^\s,;]+)"
SET = re.compile(rf"\b(?:set|or|use) ({SETTING}){VALUE}")
AND = re.compile(f" and ({SETTING}){VALUE}")
MEANT = re.compile(r"= '([^']*)' (?:is not|matches no)[^;]*; did you mean '([^']*)'\?")
RENAMED = re.compile(rf"({SETTING}) is not a setting; did you mean ({SETTING})\?")


def follow(sentence: str, settings: Sequence[str]) -> list[str] | None:
    """The settings as the message wants them; None where its advice is none for a machine (mend the row).

    "did you mean 'x'" puts x in the place of what was written; "set a.b: x" sets a.b to x.
    """
    if found := MEANT.search(sentence):
        wrong, right = found.groups()
        changed = [setting.replace(wrong, right) for setting in settings]
        return changed if changed != list(settings) else None
    if found := RENAMED.search(sentence):
        wrong, right = found.groups()
        changed = [re.sub(rf"^{re.escape(wrong)}=", f"{right}=", setting) for setting in settings]
        return changed if changed != list(settings) else None
    if found := SET.search(sentence):
        more = AND.match(sentence, found.end())
        pairs = [found.groups(), *([more.groups()] if more else [])]
        return [*settings, *(f"{name}={value.rstrip('.')}" for name, value in pairs)]
    return None
