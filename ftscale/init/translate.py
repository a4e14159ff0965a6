"""From the configuration of another tool to ours: which tool's it is, and a run.yaml that our schema takes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ftscale.base.errors import UserError, nearest, unknown_name
from ftscale.config.compatibility import check_combination
from ftscale.config.load import parse_config
from ftscale.config.tasks import SETTINGS
from ftscale.config.yaml_text import read_yaml
from ftscale.init import axolotl, huggingface, llamafactory, trl
from ftscale.init.draft import WRITTEN, Draft, is_off
from ftscale.init.write import as_yaml, one_line

TOOLS: dict[str, ModuleType] = {
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "trl": trl,
    "transformers": huggingface,
}
"""By the names that --tool takes; of two that a file fits alike, the first."""
MOST_BYTES = 4 * 2**20
SHOWN_KEYS = 4


@dataclass(frozen=True)
class Translation:
    """A configuration of ours, and what is to be said of it."""

    tool: str
    known_by: tuple[str, ...]
    """Keys by which the tool was recognised; empty = the user named it."""
    text: str
    """run.yaml."""
    open: tuple[str, ...]
    """What is to be decided or filled in."""
    lacks: tuple[str, ...]
    """`key: why it has no counterpart`."""
    unknown: tuple[str, ...]
    """Keys that are none of the tool's that are known here."""

    def told(self, out: Path) -> list[str]:
        """Say what was written, and what was not, a line each."""
        how = f", known by {', '.join(self.known_by)}" if self.known_by else ""
        lines = [f"{out} is written, from {self.tool}'s configuration{how}"]
        for title, items in (
            ("to be decided or filled in", self.open),
            ("without a counterpart", self.lacks),
            ("not known, and left out", self.unknown),
        ):
            lines += [f"{title}:", *(f"  {item}" for item in items)] if items else []
        return [*lines, f"next: ftscale check {out}"]


def translate_file(
    path: Path, *, tool: str | None = None, task: str | None = None, processes: int | None = None
) -> Translation:
    """Translate a YAML or JSON file of another tool.

    `tool`: of TOOLS; None = as its keys tell. `task`: where the file does not tell it. `processes`: on how many the
    other tool ran; None = one is assumed, and said.

    Raises:
        UserError: the file cannot be read, is of no known tool, asks for a method that ftscale does not have, or has
            values that no run can have.
    """
    if tool is not None and tool not in TOOLS:
        raise UserError(unknown_name("--tool", tool, TOOLS))
    if task is not None and task not in SETTINGS:
        raise UserError(unknown_name("--task", task, SETTINGS))
    values = _read(path)
    known_by: tuple[str, ...] = ()
    if tool is None:
        tool, known_by = _recognise(path, values)
    module = TOOLS[tool]
    if task not in (None, "causal_lm") and module is not huggingface:
        raise UserError(
            f"--task = {task} does not fit {path}, which is {module.NAME}'s and for causal_lm; leave it out."
        )
    names = axolotl.NAMES if module is axolotl else {}
    draft = Draft(module.NAME, path.name, values, names=names, defaults=module.DEFAULTS, processes=processes)
    module.translate(draft, folder=path.resolve().parent, task=task)
    if draft.value("run_folder") is None:
        draft.put("run_folder", "runs/translated", "ours: the file names no output_dir")
    return _finish(draft, path, known_by)


def _finish(draft: Draft, path: Path, known_by: tuple[str, ...]) -> Translation:
    unknown = [_unknown(key) for key in draft.unread()]
    lacks = [f"{key}: {why}" for key, why in draft.lacks.items()]
    first = f"Translated from {path.name} of {draft.tool}"
    if known_by:
        first += f", which was known by its keys {', '.join(known_by)}"
    head = (f"{first}.", "Look it over, then: ftscale check THIS_FILE")

    def written() -> str:
        tail = (
            ("To be decided or filled in:", draft.open),
            (f"Without a counterpart, of {draft.tool}'s keys:", lacks),
            ("Not known, and left out:", unknown),
            ("Without a line of their own, since they ask for nothing more here:", _without_a_line(draft)),
        )
        return as_yaml(draft.lines, head=head, tail=[(title, items) for title, items in tail if items])

    config = parse_config(read_yaml(written(), source=str(path)), source=f"{path}, as settings of ftscale")
    draft.open += check_combination(config)
    told = (tuple(map(one_line, items)) for items in (draft.open, lacks, unknown))
    return Translation(draft.tool, known_by, written(), *told)


def _without_a_line(draft: Draft) -> list[str]:
    """The file's keys that say something, were understood, and are named nowhere above; all in one item."""
    told = " ".join([*(line.why for line in draft.lines.values()), *draft.open])
    words = {*re.findall(r"[\w.-]+", told), *draft.lacks}
    usual = {**draft.defaults, **WRITTEN}
    silent = [
        key
        for key, value in draft.values.items()
        if key in draft.read - words and not is_off(value) and value != usual.get(key)
    ]
    return [", ".join(silent)] if silent else []


def _unknown(key: str) -> str:
    known = {name for module in TOOLS.values() for name in module.KEYS} | set(huggingface.DEFAULTS)
    close = nearest(key, known, cutoff=0.8)
    return key if close is None or close == key else f"{key} (did you mean {close}?)"


def _read(path: Path) -> dict[str, Any]:
    """The keys of a file. Raises UserError where it cannot be read or holds something else."""
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no file"
            raise UserError(f"--from = {path} {what}; name the YAML or JSON file of the other tool.")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"--from = {path} is larger than {MOST_BYTES >> 20} MiB, and no configuration; name another."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--from = {path} cannot be read: {error.strerror}; mend that.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--from = {path} is no text (training_args.bin is a pickle); write TrainingArguments by "
            "args.to_json_string() into a .json file."
        ) from error
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = read_yaml(text, source=str(path))
    if not isinstance(values, dict) or not values:
        raise UserError(f"--from = {path} must hold keys and values, holds {type(values).__name__}; name another file.")
    return {str(key): value for key, value in values.items()}


def _recognise(path: Path, values: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The tool whose own keys are the most in the file, and these keys."""
    if "task" in values and "run_folder" in values:
        raise UserError(f"--from = {path} is a configuration of ftscale itself; give it to ftscale check.")
    found = {name: [key for key in module.KEYS if key in values] for name, module in TOOLS.items()}
    best, second = sorted(found, key=lambda name: (len(_own(found, name)), len(found[name])), reverse=True)[:2]
    if (own := _own(found, best)) and len(own) == len(other := _own(found, second)):
        raise UserError(
            f"--from = {path} has keys of {TOOLS[best].NAME} ({own[0]}) and of {TOOLS[second].NAME} ({other[0]}); give "
            f"--tool {best} or --tool {second}."
        )
    if not found[best]:
        raise UserError(
            f"--from = {path} has no key by which its tool is known; give --tool {', '.join(TOOLS)} where it is of one."
        )
    keys = _own(found, best) or found[best]
    return best, tuple(keys[:SHOWN_KEYS])


def _own(found: dict[str, list[str]], name: str) -> list[str]:
    """Keys that no other tool has; those of TrainingArguments are everybody's."""
    others = {key for other, keys in found.items() if other != name for key in keys}
    return [key for key in found[name] if key not in others] if name != "transformers" else []
