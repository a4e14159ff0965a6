"""Every setting as a page of Markdown; `ftscale schema --page` prints it, and docs/settings.md holds it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ftscale.config.load import config_schema

HEAD = """# Settings

Written by `ftscale schema --page` from the schema that reads a configuration. Every setting may also stand on the
command line, by the name that it has here: `ftscale train run.yaml optimizer.lr=1e-4 data.train[0].limit=100`. One
that is not here is refused, with the nearest one that is. `ftscale schema` prints the same as JSON Schema, by which
editors complete.

Only `task`, `run_folder`, `model` and `data.train` must be set.
"""
TABLE = "| setting | is | default | meaning |\n|---|---|---|---|"
TYPES = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "keys and values",
    "string": "string",
}

Part = dict[str, Any]
"""A part of a JSON Schema."""


def settings_page() -> str:
    """Return the page: the settings that stand alone, then a table for each section, and for each task its own."""
    schema = config_schema()
    sections, alone = [], []
    for name, part in schema["properties"].items():
        found = _sections_in(part, schema)
        if not found:
            alone.append(_row(name, part, required=schema["required"]))
        elif len(found) == 1:
            sections += [f"## {name}", *_about(found[0], part), *_section(name, found[0], schema)]
        else:
            sections += [f"## {name}", part["description"]]
            for kind in found:
                title = kind["properties"]["name"]["const"]
                sections += [f"### {name}: {title}", *_about(kind, {}), *_section(name, kind, schema)]
    return "\n\n".join([HEAD.rstrip(), "\n".join([TABLE, *alone]), *sections]) + "\n"


def _about(section: Part, part: Part) -> list[str]:
    """What a setting and its section say of themselves."""
    said = [part.get("description"), section.get("description")]
    return [_prose(text) for text in said if text]


def _section(name: str, section: Part, schema: Part) -> Iterator[str]:
    """A table of the section's settings, and one for each kind of section inside it."""
    rows: list[str] = []
    inner: dict[str, tuple[Part, list[str]]] = {}
    for key, part in section["properties"].items():
        if "const" in part:  # the name of a task or method, which the heading says
            continue
        setting = f"{name}.{key}"
        rows.append(_row(setting, part, required=section.get("required", ())))
        for kind in _sections_in(part, schema):
            inner.setdefault(kind["title"], (kind, []))[1].append(f"{setting}[0]" if _is_list(part) else setting)
    if rows:
        yield "\n".join([TABLE, *rows])
    for kind, settings in inner.values():
        yield "#### " + ", ".join(setting.removesuffix("[0]") for setting in settings)
        yield from _about(kind, {})
        yield from _section(settings[0], kind, schema)


def _row(setting: str, part: Part, *, required: Any) -> str:
    default = "required" if setting.rpartition(".")[2] in required else _default(part)
    return f"| `{setting}` | {_type(part)} | {default} | {_prose(part.get('description', ''))} |"


def _default(part: Part) -> str:
    value = part.get("default")
    return "see below" if isinstance(value, dict) and value else f"`{json.dumps(value)}`"


def _type(part: Part) -> str:
    """What a value may be, in words."""
    if "$ref" in part:
        return "section"
    for several in ("anyOf", "oneOf"):
        if several in part:
            return "; or ".join(dict.fromkeys(map(_type, part[several])))
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    kind = TYPES[part["type"]]
    if kind == "list" and "items" in part:
        of = _type(part["items"])
        return f"list of ({of})" if "; or " in of else f"list of {of}"
    return ", ".join([kind, *_bounds(part)])


def _bounds(part: Part) -> list[str]:
    if "minimum" in part and "maximum" in part:
        return [f"{part['minimum']:g} to {part['maximum']:g}"]
    words = {"minimum": "{:g} or more", "exclusiveMinimum": "above {:g}", "exclusiveMaximum": "below {:g}"}
    return [said.format(part[bound]) for bound, said in words.items() if bound in part]


def _prose(text: str) -> str:
    """A description on one line, as a cell of a table takes it; what looks like a tag of HTML is none."""
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(piece.replace("<", "&lt;") if number % 2 == 0 else piece for number, piece in enumerate(pieces))


def _sections_in(part: Part, schema: Part) -> list[Part]:
    """The sections that a setting may be, or may be a list of, each once."""
    refs = dict.fromkeys(_refs(part))
    return [schema["$defs"][ref.rpartition("/")[2]] for ref in refs]


def _refs(part: Part) -> Iterator[str]:
    if "$ref" in part:
        yield part["$ref"]
    for several in ("anyOf", "oneOf"):
        for option in part.get(several, ()):
            yield from _refs(option)
    if "items" in part:
        yield from _refs(part["items"])


def _is_list(part: Part) -> bool:
    return any("items" in option for option in part.get("anyOf", (part,)))
