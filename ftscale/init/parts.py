"""Which files of a folder, or beside a file, are for training, for evaluation and for the test."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError, counted
from ftscale.data.formats.discover import PAIR, detect_format
from ftscale.data.formats.image_folder import images
from ftscale.data.formats.paths import files_below
from ftscale.data.formats.splits import splits_of
from ftscale.init.doubts import Doubts, Option
from ftscale.init.draft import words
from ftscale.init.heads import head_of
from ftscale.init.look import SETTING

NAMES = {  # words in the names of files; those of `datasets`, and more that data sets on the web have
    "train": frozenset(words("train training trainset trn")),
    "eval": frozenset(words("validation valid validset val dev devel development devset trial eval evaluation")),
    "test": frozenset(words("test testing testset tst")),
}
WORDS = {"eval": "evaluation", "test": "the test"}
SPLIT_OF = {"train": "train", "eval": "validation", "test": "test"}
"""What the hub calls them."""
NO_ROWS = re.compile(
    r"(read_?me|licen[cs]e|notice|citation|changelog|class(es)?|labels?|label_?names|categories|dataset_infos?|vocab)"
    r"(\..*)?",
    re.IGNORECASE,
)
"""Names of files that lie beside data and hold none."""
LANGUAGE = re.compile(r"(?P<stem>.+?)\.(?P<language>[a-z]{2})(?P<packed>\.(gz|bz2|xz|zst))?")
"""A file of lines in a language, as translations come: train.de.gz."""
SHOWN = 4


@dataclass
class Parts:
    """Sources, as settings, of each part of a run."""

    train: list[dict[str, Any]]
    others: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Of eval and test, where there are any."""
    why: str = ""
    """How the parts were told; empty = there is one."""


def parts_of(path: str, doubts: Doubts) -> Parts:
    """Return the parts of a folder, or of a file with those beside it. Raises UserError for an empty folder."""
    place = os.path.expanduser(path)
    if os.path.isdir(place):
        return _of_folder(path, place, doubts)
    place = _with_other_half(place, doubts)
    parts = _by_name(place, _siblings(place))
    if place in parts["train"]:
        return _as_parts(parts, "the names of the files beside it")
    _tell_part(place, doubts, better=parts["train"])
    return Parts([{"path": place}])


def part_of(path: str) -> str | None:
    """Return the part whose word stands in the name of a file, none other; None = it does not tell."""
    parts = set(re.split(r"[\W_\d]+", os.path.basename(path).lower()))
    found = [part for part, known in NAMES.items() if parts & known]
    return found[0] if len(found) == 1 else None


def run_name(path: str) -> str:
    """Return a name for the run: the file's, or that of its folder where the file's is that of a part."""
    place = Path(path)
    stem = place.name.split(".")[0] or place.name
    if part_of(path) and place.absolute().parent.name:
        stem = place.absolute().parent.name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "run"


def without_path(source: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a source beside its path."""
    return {name: value for name, value in source.items() if name != "path"}


# ---------------------------------------------------------------- folders


def _of_folder(path: str, place: str, doubts: Doubts) -> Parts:
    files = [os.path.join(place, name) for name in files_below(place, hidden=(".", "_"))]
    if not files:
        raise UserError(f"{SETTING} = {path} is an empty folder; put the data files there, or name another.")
    name = _configuration(path, place, files, doubts)
    more = {} if name is None else {"name": name}
    splits = splits_of(place, files, name=name, setting=SETTING)
    if _is_of_images(place):
        return _of_images(path, place, more, splits, doubts)
    if name is not None or (splits and any(os.path.dirname(file) != place for file in files)):
        return _by_split(path, more, splits)
    rows = _of_one_format(path, _in_pairs(files), doubts)
    if len(rows) == 1:
        _tell_part(rows[0], doubts)
        return Parts([{"path": rows[0]}])
    parts = _by_name(None, rows)
    if not any(parts.values()):
        alike = _alike(path, rows, doubts)
        return Parts([{"path": path}] if alike == files else [{"path": file} for file in alike])
    if not parts["train"]:
        _take_another(path, parts, doubts)
    return _as_parts(parts, "the names of its files")


def _configuration(path: str, place: str, files: Sequence[str], doubts: Doubts) -> str | None:
    """The configuration of a README.md that names several data sets; None where none is to be chosen."""
    try:
        splits_of(place, files, name=None, setting=SETTING)
    except UserError:
        from datasets import get_dataset_config_names

        return choose_configuration(path, get_dataset_config_names(place), doubts)
    return None


def choose_configuration(path: str, names: Sequence[str], doubts: Doubts) -> str:
    """Return the one of several configurations of a data set that is meant."""
    default = "default" if "default" in names else names[0]
    return doubts.settle(
        f"{path} holds {len(names)} data sets; which one?",
        options=[Option(name) for name in names],
        default=default,
        note=f"{default} is taken of the data sets {_listed(names)}; name says another." if len(names) > 1 else None,
    )


def _is_of_images(place: str) -> bool:
    try:
        return detect_format(place, setting=SETTING) == "image_folder"
    except UserError:
        return False


def _of_images(path: str, place: str, more: dict[str, Any], splits: dict[str, list[str]], doubts: Doubts) -> Parts:
    """Images by their splits; without any the folder that holds more than one folder of a class."""
    if len(splits) > 1:
        return _by_split(path, more, splits)
    while len({image.split("/")[0] for image in images(place)}) == 1:
        inside = os.path.join(place, images(place)[0].split("/")[0])
        if not os.path.isdir(inside) or all("/" not in image for image in images(inside)):
            break
        path, place = os.path.join(path, os.path.basename(inside)), inside
    if any(image.count("/") > 1 for image in images(place)):
        doubts.note(f"the class of an image is its folder in {path}, and not a folder inside that.")
    return Parts([{"path": path, **more}])


def _by_split(path: str, more: dict[str, Any], splits: dict[str, list[str]]) -> Parts:
    if len(splits) < 2:
        return Parts([{"path": path, **more}])
    first = "train" if "train" in splits else next(iter(splits))
    parts = {part: [{"path": path, **more, "split": split}] for part, split in SPLIT_OF.items() if split in splits}
    others = {part: sources for part, sources in parts.items() if part != "train" and SPLIT_OF[part] != first}
    return Parts([{"path": path, **more, "split": first}], others, f"its splits are {', '.join(splits)}")


def _of_one_format(path: str, files: list[str], doubts: Doubts) -> list[str]:
    """The files that hold rows: those of the format of the training file, else of the most bytes."""
    rows = [file for file in files if not NO_ROWS.fullmatch(os.path.basename(file))] or files
    formats = {file: _format(file) for file in rows}
    known = [file for file in rows if formats[file]]
    if not known or len({formats[file] for file in known}) < 2:
        return known or rows
    training = [file for file in known if part_of(file) == "train"]
    chosen = formats[max(training or known, key=_size)]
    left = [file for file in files if formats.get(file) != chosen]
    doubts.note(f"of {path} the {chosen} files are taken, and not {_listed(map(os.path.basename, left))}.")
    return [file for file in known if formats[file] == chosen]


def _alike(path: str, files: list[str], doubts: Doubts) -> list[str]:
    """Those files that have the same columns; of several kinds of them the one with the most bytes."""
    kinds: dict[Hashable, list[str]] = {}
    for file in files:
        kinds.setdefault(head_of(file), []).append(file)
    largest = max(kinds.values(), key=lambda kind: sum(map(_size, kind)))
    names = {", ".join(map(os.path.basename, kind)): kind for kind in kinds.values()}
    default = next(name for name, kind in names.items() if kind is largest)
    answer = doubts.settle(
        f"The files of {path} have different columns; which are to be learned from?",
        options=[Option(name) for name in names],
        default=default,
        note=f"the files of {path} have different columns; {default} are taken, the largest."
        if len(kinds) > 1
        else None,
    )
    return names[answer]


def _take_another(path: str, parts: dict[str, list[str]], doubts: Doubts) -> None:
    """Train on the evaluation rows, or else on those of the test, where a folder has no file for training."""
    part = "eval" if parts["eval"] else "test"
    parts["train"], parts[part] = parts[part], []
    names = _listed(map(os.path.basename, parts["train"]))
    doubts.note(f"{path} has no file for training by its names; {names} is trained on.")


# ---------------------------------------------------------------- files


def _tell_part(file: str, doubts: Doubts, better: Sequence[str] = ()) -> None:
    """Tell that a file is not for training by its name."""
    if (own := part_of(file)) in (None, "train"):
        return
    said = f"{os.path.basename(file)} is for {WORDS[str(own)]} by its name, and trained on all the same"
    doubts.note(f"{said}; {os.path.basename(better[0])} lies beside it." if better else f"{said}.")


def _with_other_half(place: str, doubts: Doubts) -> str:
    """A file of lines as half of a pair, where lines of one other language lie beside it and are wanted as well."""
    pairs = [pair for pair in _in_pairs(_siblings_of_any_suffix(place)) if place in _halves(pair)]
    if not pairs:
        return place
    name, pair = os.path.basename(place), os.path.basename(pairs[0])
    answer = doubts.settle(
        f"A file of another language lies beside {name}; is it the text of that, line by line?",
        options=[Option("alone", "learn to write such lines"), Option("pair", f"learn to translate, by {pair}")],
        default="alone",
        note=f"{name} is read alone; {pair} is the pair of it and the file beside it, to learn to translate.",
    )
    return pairs[0] if answer == "pair" else place


def _siblings_of_any_suffix(place: str) -> list[str]:
    folder = os.path.dirname(place) or "."
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) and LANGUAGE.fullmatch(os.path.basename(place)) else []
    return [os.path.join(os.path.dirname(place), name) for name in names]


def _halves(pair: str) -> set[str]:
    return {PAIR.sub(rf"\{half}", pair) for half in (1, 2)} if PAIR.search(pair) else set()


def _siblings(place: str) -> list[str]:
    folder = os.path.dirname(place) or "."
    if not os.path.isdir(folder):
        return []
    files = [os.path.join(os.path.dirname(place), name) for name in os.listdir(folder) if not name.startswith(".")]
    files = sorted(file for file in files if os.path.isfile(file))
    if PAIR.search(place):
        return [file for file in _in_pairs(files) if PAIR.search(file)]
    return [file for file in files if _suffixes(file) == _suffixes(place)]


def _in_pairs(files: Sequence[str]) -> list[str]:
    """Files of lines in two languages as train.{de,en}; the others as they are."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in files:
        if (match := LANGUAGE.fullmatch(os.path.basename(file))) and _format(file) is None:
            found.setdefault((match["stem"], match["packed"] or ""), []).append(match["language"])
    pairs = []
    for (stem, packed), languages in found.items():
        if len(languages) == 2:
            folder = next(os.path.dirname(file) for file in files if os.path.basename(file).startswith(f"{stem}."))
            pairs.append(os.path.join(folder, f"{stem}.{{{','.join(sorted(languages))}}}{packed}"))
    halves = set[str]().union(*map(_halves, pairs))
    return sorted([*pairs, *(file for file in files if file not in halves)])


def _by_name(place: str | None, files: Iterable[str]) -> dict[str, list[str]]:
    """The files of each part; a file `place` without a part's name has no others beside it."""
    parts: dict[str, list[str]] = {part: [] for part in NAMES}
    for file in files:
        if part := part_of(file):
            parts[part].append(file)
    if place is not None and part_of(place) != "train":
        parts["train"] = [file for file in parts["train"] if part_of(place)]
    elif place is not None:
        parts["train"] = [place]
    return parts


def _as_parts(parts: dict[str, list[str]], by: str) -> Parts:
    sources = {part: [{"path": file} for file in files] for part, files in parts.items() if files}
    why = f"parts {', '.join(sources)} by {by}" if len(sources) > 1 else ""
    return Parts(sources.pop("train"), sources, why)


def _format(file: str) -> str | None:
    try:
        return detect_format(file, setting=SETTING)
    except UserError:
        return None


def _size(file: str) -> int:
    return sum(map(os.path.getsize, _halves(file) or {file}))


def _suffixes(file: str) -> str:
    return os.path.basename(file).partition(".")[2].lower()


def _listed(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    rest = f" and {counted(len(shown) - SHOWN, 'other')}" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + rest
