"""Every message that ftscale can end or warn with, read from its code; run, it writes docs/messages.md.

A message is a text of the program that says what is wrong: what an error is made of, what the log warns of, or a
sentence in the house's form, "what is wrong; what to do."
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ftscale.config.problems import _RULES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/messages.md"
HOLE = "..."
"""What stands for a value in a message."""
SECTIONS = {
    "Settings, and what goes with what": ("config/", "optim/"),
    "Before a run: check and plan": ("precheck/", "checks/", "plan/"),
    "Files and columns": ("data/formats/", "data/sources.py"),
    "Rows, chats, prepared data": ("data/",),
    "Rows and scores of a task": ("tasks/", "modalities/", "metrics/"),
    "Models, adapters, methods": ("models/", "methods/"),
    "Processes and strategies": ("distributed/", "base/launched.py", "run/launch.py"),
    "The run, its folder, its end": ("run/", "train/", "base/"),
    "Slurm": ("cluster/",),
    "Other commands": ("cli.py", "init/", "doctor/", "demo/", ""),
}
"""Where the code lies whose messages stand together; the first that fits."""
HEAD = """# Every message

Written by `python tests/messages.py` from the code. `...` stands for a value: a setting, a file, a number. Each says
what is wrong, and after the semicolon what to do; [troubleshooting](troubleshooting.md) says more of those that need
it. Search for some words of yours that are no values.
"""
ERRORS = re.compile(r"Error$|^Unreadable|^error$")
"""Names of what is called with a message."""
NO_MESSAGES = ("help", "epilog", "source", "metavar")
"""Names of arguments that are texts of another kind."""
FEWEST_WORDS = 3
REPORTS = ("checks/show.py", "plan/report.py", "run/final_model.py", "cluster/watch.py", "doctor/")
"""Files whose texts are lines of a report, where they are no errors."""


@cache
def messages() -> dict[str, list[str]]:
    """The messages by section, in the order of the code."""
    found: dict[str, list[str]] = {title: [] for title in SECTIONS}
    for path in sorted((ROOT / "ftscale").rglob("*.py")):
        place = path.relative_to(ROOT / "ftscale").as_posix()
        title = next(title for title, places in SECTIONS.items() if place.startswith(places))
        every = not place.startswith(REPORTS)
        found[title] += [text for text in _messages_of(path, every=every) if text not in found[title]]
    rules = (f"{HOLE} = {HOLE} {rule}; {fix}{HOLE}" for rule, fix in _RULES.values())
    found[next(iter(SECTIONS))] += dict.fromkeys(re.sub(r"\{\w+\}", HOLE, rule) for rule in rules)
    return found


def page() -> str:
    """The text of docs/messages.md."""
    blocks = [f"## {title}\n\n```text\n" + "\n".join(found) + "\n```" for title, found in messages().items()]
    return "\n\n".join([HEAD.rstrip(), *blocks]) + "\n"


def pattern_of(message: str) -> re.Pattern[str]:
    """What finds a message in a text that has values where it has holes."""
    return re.compile(".*".join(map(re.escape, re.split(r"\.{3,}", message))), re.DOTALL)


@cache
def texts() -> set[str]:
    """Every text of the program, messages or not, with holes for values."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ftscale").rglob("*.py"))
    return {text for tree in trees for node in ast.walk(tree) if (text := _text(node))}


def texts_in(path: str, *functions: str) -> list[str]:
    """The texts inside some functions of a file of the package, docstrings left out."""
    tree = ast.parse((ROOT / "ftscale" / path).read_text(encoding="utf-8"))
    bodies = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in functions]
    assert len(bodies) == len(functions), f"{path} has not all of {functions}"
    inner = [node for body in bodies for node in ast.walk(body)]
    left_out = {id(node.value) for node in inner if isinstance(node, ast.Expr)}
    left_out |= {id(part) for node in inner if isinstance(node, ast.JoinedStr) for part in node.values}
    return [text for node in inner if id(node) not in left_out and (text := _text(node))]


def _messages_of(path: Path, *, every: bool) -> Iterator[str]:
    """`every`: also those that no error is made of here, by their form alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told, left_out = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if _is_told(node):
                told |= {id(text) for argument in node.args for text in _texts(argument)}
            left_out |= {id(text) for word in node.keywords for text in _texts(word.value) if word.arg in NO_MESSAGES}
        if isinstance(node, ast.Expr):  # docstrings
            left_out |= {id(node.value)}
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        text = _text(node)
        if text is None or id(node) in left_out or len(re.findall("[a-z]{2,}", text)) < FEWEST_WORDS:
            continue
        if id(node) in told or (every and "; " in text[1:] and text.endswith((".", "?"))):
            yield text


def _is_told(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return bool(ERRORS.search(name)) or name == "warning"


def _texts(node: ast.AST) -> Iterator[ast.AST]:
    """Texts that an argument may be, also in the branches of a choice and in a sum."""
    if _text(node) is not None:
        yield node
    elif isinstance(node, (ast.IfExp, ast.BinOp, ast.Starred, ast.List, ast.Tuple)):
        for inner in ast.iter_child_nodes(node):
            yield from _texts(inner)


def _text(node: ast.AST) -> str | None:
    """The words of a text, with a hole for each value; None = it is no text."""
    if isinstance(node, ast.Constant):
        text = node.value if isinstance(node.value, str) else None
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    else:
        text = None
    return None if text is None else re.sub(r"%(?:\.\d)?[sdfg]|%r", HOLE, " ".join(text.split()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
