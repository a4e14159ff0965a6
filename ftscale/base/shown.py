"""Texts as people and files may have them: URLs without their secrets, control characters made visible."""

from __future__ import annotations

import re

SECRET = "<secret>"
"""Stands where a user's name, password or token was; no URL holds these characters as they are."""

_IN_TEXT = re.compile(rf"[A-Za-z][\w+.-]{{0,30}}://(?:{SECRET}|[^\s'\"<>])+(?<![.,;:)])")
_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]{0,30})://(?P<login>[^/?#]*)@")
_NO_SECRET = ("abfs", "abfss", "wasb", "wasbs", "github", "git")
"""Schemes whose URLs name a container or a repository before the @."""
_PART = re.compile(r"(?P<mark>[?&#])(?P<name>[^=?&#]*=)?(?P<value>[^?&#]*?)(?P<line>:\d+)?(?=[?&#]|$)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NO_LINE = re.compile(rf"[\n\t]|{_CONTROL.pattern}")


def shown(text: str) -> str:
    r"""A text for a terminal or a log: no secrets of URLs, and of control characters line ends and tabs alone.

    Others steer a terminal (its title, its clipboard, what stands on it already) and are written as `\x1b`.
    """
    return visible(_IN_TEXT.sub(lambda found: without_secrets(found[0]), text))


def visible(text: str) -> str:
    r"""Control characters but line ends and tabs written as `\x1b`, those that turn the reading direction too."""
    return _CONTROL.sub(lambda found: _escaped(found[0]), text)


def without_secrets(url: str) -> str:
    """A URL with `<secret>` for what stands before the @ of its host, and for each value of its query.

    All values: no list of names tells a token from what is none. A number after the last colon is a line's. A path
    that is no URL stays as it is.
    """
    if "://" not in url:
        return url
    url = _LOGIN.sub(_without_login, url)
    path = re.split("[?#]", url, maxsplit=1)[0]
    named_only = not path.rpartition("::")[2].lower().startswith("http")  # a ? may belong to a name of others' files
    return path + _PART.sub(lambda part: _without_value(part, named_only=named_only), url[len(path) :])


def control_characters(text: str) -> str:
    r"""The control characters of a text that should be a part of one line, as `\n`; "" = there are none."""
    return "".join(dict.fromkeys(_escaped(found) for found in _NO_LINE.findall(text)))


def _without_login(found: re.Match[str]) -> str:
    scheme, login = found["scheme"].lower(), found["login"]
    is_secret = scheme not in _NO_SECRET and (":" in login or scheme in ("http", "https"))
    return f"{found['scheme']}://{SECRET}@" if is_secret and login else found[0]


def _without_value(part: re.Match[str], *, named_only: bool) -> str:
    name, line = part["name"] or "", part["line"] or ""
    is_secret = part["value"] and (name or (part["mark"] != "#" and not named_only))
    return f"{part['mark']}{name}{SECRET}{line}" if is_secret else part[0]


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
