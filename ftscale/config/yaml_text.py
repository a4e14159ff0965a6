"""YAML as ftscale reads and writes it: the YAML 1.2 scalars (`1e-5` a number, `no` a text), no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ftscale.errors import UserError

_SCALARS = (  # the core schema of YAML 1.2; PyYAML's own is 1.1, where 1e-5 is a text, `no` false and 010 eight
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), "~nN\0"),
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        re.compile(
            r"(?:[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", re.compile(r"<<$"), "<"),
)
MOST_CHARACTERS = 4 * 2**20  # a configuration has some hundred lines
MOST_LEVELS = 64
MOST_REPEATED = 100_000  # values that aliases stand for: nine levels of nine aliases in 1 KB stand for 400 million
MOST_DIGITS = 32  # of an integer; 64 bits have 20
SHOWN = 40


def read_yaml(text: str, *, source: str) -> Any:
    """The value of one YAML document. Raises UserError with the line for what is not YAML, and for a key twice."""
    if len(text) > MOST_CHARACTERS:
        raise UserError(
            f"{source}: has {len(text)} characters, and {MOST_CHARACTERS} are the most; keep lists of names in a file "
            "of their own."
        )
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{where}: not valid YAML: {said}; mend that line.") from error
    except RecursionError as error:
        raise UserError(f"{source}: not valid YAML: it is nested too deeply; mend that value.") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        said = " ".join(str(error).split())
        raise UserError(f"{source}: not valid YAML: {said}; remove the character.") from error
    except (ValueError, LookupError, ArithmeticError, AttributeError) as error:  # of a tag: `!!bool x`
        raise UserError(f"{source}: not valid YAML: a tag (!!) does not fit its value ({error}); remove it.") from error


def read_scalar(text: str) -> Any:
    """One plain value as YAML reads it: a number, true, false, null, or else the text itself, `#` and `: ` included."""
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{text[:SHOWN]!r}: {error.problem}; correct it.") from error


def write_yaml(value: Any) -> str:
    """YAML text that `read_yaml`, and any reader of YAML 1.1, reads back as the same value; tuples become lists."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.sizes: dict[int, int] = {}
        """Of each node by its id: the values in it, those of aliases as often as they stand there."""
        self.repeated = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        is_alias = isinstance(event, yaml.AliasEvent)
        if self.depth == MOST_LEVELS:
            raise _refusal(f"it is nested deeper than {MOST_LEVELS} levels", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias:
            if id(node) not in self.sizes:  # its end is still to come
                raise _refusal(f"the alias *{event.anchor} stands inside what it is the name of", event.start_mark)
            self.repeated += self.sizes[id(node)]
            if self.repeated > MOST_REPEATED:
                raise _refusal(f"aliases repeat more than {MOST_REPEATED} values", event.start_mark)
        elif node is not None:
            self.sizes[id(node)] = 1 + sum(self.sizes[id(item)] for item in _items(node))
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands here and in line {seen[key.value]}", key.start_mark
                )
            seen[key.value] = key.start_mark.line + 1
        return node


def _items(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [item for pair in node.value for item in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    digits = loader.construct_scalar(node)
    if len(digits) > MOST_DIGITS:
        raise _refusal(f"a number of {len(digits)} digits; {MOST_DIGITS} are the most", node.start_mark)
    return loader.construct_yaml_int(node)


def _refusal(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """In double quotes where a next line (U+0085) is in it: PyYAML would fold the line there, and read a blank."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


for _tag, _pattern, _first in _SCALARS:
    _characters = ["" if character == "\0" else character for character in _first]
    _Loader.add_implicit_resolver(_tag, _pattern, _characters)
    _Dumper.add_implicit_resolver(_tag, _pattern, _characters)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Dumper.add_representer(tuple, _Dumper.represent_list)
_Dumper.add_representer(str, _text)
