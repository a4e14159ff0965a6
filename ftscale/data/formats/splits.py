"""The splits of a local folder of data, by the names that the `datasets` library knows.

Source: https://huggingface.co/docs/datasets/repository_structure, and `datasets.data_files`.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ftscale.base.errors import UserError, unknown_name

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
BETWEEN = "[-._ 0-9]"
FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
EVERY = "all"
CARD = "README.md"
"""What says of a data set which files are which split."""

Splits = dict[str, list[str]]
"""Name of a split to its files."""


def splits_of(folder: str, files: Sequence[str], *, name: str | None, setting: str) -> Splits:
    """The splits of a folder's files: as its README.md says, by shards, by folders, or by file names; else none.

    `name`: the configuration of the README. Raises UserError where that is to be chosen, or is none of it.
    """
    inside = {os.path.relpath(file, folder).replace(os.sep, "/"): file for file in files}
    declared, default = _declared(Path(folder) / CARD)
    if name is not None and not declared:
        raise UserError(
            f"{setting}.name = {name!r} is the configuration of a hub data set, and {folder} has no README.md that "
            "names any; leave it out."
        )
    if name is not None and name not in declared:
        raise UserError(unknown_name(f"{setting}.name", name, declared))
    if declared:
        chosen = name or default
        if chosen is None:
            raise UserError(
                f"{setting}.path = {folder!r} has the configurations {', '.join(declared)} by its README.md; set "
                f"{setting}.name: {next(iter(declared))}."
            )
        return _matched(declared[chosen], inside)
    for find in (_by_shard, _by_folder, _by_file):
        found: Splits = {}
        for path, file in inside.items():
            for split in find(path):
                found.setdefault(split, []).append(file)
        if found:
            return {split: found[split] for split in sorted(found, key=_place)}
    return {}


def split_for(setting: str, splits: Splits) -> str:
    """The split that a setting is likely to mean: that of its own name, or the first."""
    own = "validation" if ".eval" in setting else "test" if ".test" in setting else "train"
    return own if own in splits else next(iter(splits))


def same_split(split: str, known: Iterable[str]) -> str | None:
    """The one of the known splits that a name means: itself, or `validation` for `dev`."""
    if split in known:
        return split
    return next((name for name, words in KEYWORDS.items() if split in words and name in known), None)


def names_split(word: str) -> bool:
    """Whether a name is that of a split, or ends or begins as one: `train`, `dev_rows`."""
    return bool(_splits_named(word, ends=True))


def folder_of_split(path: str, folder: str) -> str | None:
    """The folder of a split that a file lies in, e.g. `images/train` of `images/train/cat/1.png`; None without one."""
    parts = os.path.relpath(path, folder).split(os.sep)[:-1]
    number = next((number for number, part in enumerate(parts) if _splits_named(part, ends=True)), None)
    return None if number is None else os.path.join(folder, *parts[: number + 1])


def _place(split: str) -> tuple[int, str]:
    """Train, validation and test before all others."""
    return (list(KEYWORDS).index(split) if split in KEYWORDS else len(KEYWORDS), split)


def _by_shard(path: str) -> list[str]:
    found = SHARD.fullmatch(path)
    return [found[1]] if found else []


def _by_folder(path: str) -> list[str]:
    return sorted({split for part in path.split("/")[:-1] for split in _splits_named(part, ends=True)})


def _by_file(path: str) -> list[str]:
    return _splits_named(path.rpartition("/")[2], ends=False)


def _splits_named(word: str, *, ends: bool) -> list[str]:
    """The splits whose keyword stands in a name between separators; `ends`: it may also be the name's end."""
    after = f"(?:{BETWEEN}.*)?" if ends else f"{BETWEEN}.*"
    return [
        split
        for split, words in KEYWORDS.items()
        if re.fullmatch(f"(?:.*{BETWEEN})?(?:{'|'.join(words)}){after}", word)
    ]


# ---------------------------------------------------------------- README.md


def _declared(readme: Path) -> tuple[dict[str, dict[str, list[str]]], str | None]:
    """The configurations that the metadata of a README.md names, each with patterns by split, and the default one."""
    items = [item for item in _configurations(readme) if "data_files" in item]
    found = {}
    for item in items:
        inside = f"{str(item['data_dir']).strip('/')}/" if item.get("data_dir") else ""
        found[str(item.get("config_name", "default"))] = {
            split: [inside + pattern for pattern in given] for split, given in _patterns(item["data_files"]).items()
        }
    marked = [str(item["config_name"]) for item in items if item.get("default") and "config_name" in item]
    default = "default" if "default" in found else next(iter(found if len(found) == 1 else marked), None)
    return found, default


def _configurations(readme: Path) -> list[dict[str, Any]]:
    if not readme.is_file():
        return []
    matter = FRONT_MATTER.match(readme.read_text(encoding="utf-8", errors="replace").lstrip("\ufeff"))
    try:
        metadata = yaml.safe_load(matter[1]) if matter else None
    except yaml.YAMLError:  # a page that is no data card
        return []
    found = metadata.get("configs") if isinstance(metadata, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _patterns(given: Any) -> dict[str, list[str]]:
    """`data_files` in all its forms: a pattern, a list of them, or a list of {split, path}."""
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):
        return {str(item["split"]): _listed(item["path"]) for item in given if "split" in item and "path" in item}
    return {"train": _listed(given)}


def _listed(paths: Any) -> list[str]:
    return [str(path) for path in paths] if isinstance(paths, list) else [str(paths)]


def _matched(patterns: dict[str, list[str]], inside: dict[str, str]) -> Splits:
    found: Splits = {}
    for split, given in patterns.items():
        files = [file for path, file in inside.items() if any(matches(path, pattern) for pattern in given)]
        if files:
            found[split] = files
    return found


def matches(path: str, pattern: str) -> bool:
    """Whether a glob takes a path: `*` stays inside a folder, `**` goes into all below it."""
    parts = ["(?:.*/)?" if part == "**" else f"{_part(part)}/" for part in pattern.removeprefix("./").split("/")]
    return re.fullmatch("".join(parts), f"{path}/") is not None


def _part(pattern: str) -> str:
    """The regular expression of a glob inside a folder."""
    return fnmatch.translate(pattern)[4:-3].replace(".*", "[^/]*")
