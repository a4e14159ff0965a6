"""What classes or numbers in a label column mean for settings: the problem, names of numbers, the metric."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ftscale.data.formats.splits import CARD, FRONT_MATTER
from ftscale.init.columns import Rows
from ftscale.init.doubts import Doubts, Option
from ftscale.init.draft import Draft
from ftscale.init.look import Column

IMBALANCE = 3.0
NAMED = re.compile(r"(class(es)?|labels?|categories)(_?names?)?\.(txt|json)", re.IGNORECASE)
"""Files beside the rows that name the classes which they number."""


def put_label(draft: Draft, rows: Rows, path: str, doubts: Doubts) -> None:
    """Set problem, class names and metric of a task of classes."""
    label = rows.label
    if draft.value("task.problem") == "multi_label":
        draft.put("evaluation.metric", "f1_micro", "over all decisions for rows that may have several classes")
        return
    if label is None:
        return
    if label.is_number and not label.is_class and rows.task == "text_classification":
        draft.put("task.problem", "regression", f"{label.name} holds numbers, not classes")
        draft.put("evaluation.metric", "pearson", "how well the numbers follow those of the rows")
        return
    if label.is_number and (names := _names_beside(path, label)):
        file, named = names
        draft.put("task.labels", named, f"the names in {file}, in their order")
    elif (
        label.is_number and len(label.counts) > 2 and rows.task == "text_classification" and _are_ordered(label, doubts)
    ):
        draft.put("task.problem", "regression", "the order of the numbers counts")
        draft.put("evaluation.metric", "pearson", "how well the numbers follow those of the rows")
        return
    most, least = max(label.counts.values()), min(label.counts.values())
    if most > IMBALANCE * least:
        why = (
            f"the largest of {len(label.counts)} classes has {most} rows, the smallest {least}: each counts alike here"
        )
        draft.put("evaluation.metric", "f1_macro", why)
    else:
        why = f"{len(label.counts)} classes of like size, of {least if least == most else f'{least} to {most}'} rows"
        draft.put("evaluation.metric", "accuracy", why)
    if least == 1:
        doubts.note(f"some classes of {label.name} have a single row; they cannot be learned and scored both.")


def _are_ordered(label: Column, doubts: Doubts) -> bool:
    numbers = sorted(label.counts, key=float)
    about = f"the {len(numbers)} numbers of {label.name} ({numbers[0]} to {numbers[-1]})"
    answer = doubts.settle(
        f"Are {about} classes, or amounts of which one is more than the other?",
        options=[Option("classes", "scored by accuracy or F1"), Option("amounts", "scored by correlation")],
        default="classes",
        note=f"task.problem: {about} are taken for classes; where their order counts, set regression.",
    )
    return answer == "amounts"


def _names_beside(path: str, label: Column) -> tuple[str, dict[int, str]] | None:
    """The file beside the rows with a name for each number, from 0 or from 1, and these names."""
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    numbers = sorted({int(float(value)) for value in label.counts})
    if not folder.is_dir() or numbers[0] not in (0, 1):
        return None
    for file in sorted(folder.iterdir()):
        if file.is_file() and (NAMED.fullmatch(file.name) or file.name == CARD):
            names = _names_in_card(file, str(label.name)) if file.name == CARD else _names_in(file)
            if len(names) == len(set(names)) and numbers == list(range(numbers[0], numbers[0] + len(names))):
                return file.name, dict(zip(numbers, names, strict=True))
    return None


def _names_in_card(file: Path, column: str) -> list[str]:
    """The names of a column's classes in the metadata of a README.md, as data sets of the hub have it."""
    try:
        matter = FRONT_MATTER.match(file.read_text(encoding="utf-8"))
        about: Any = yaml.safe_load(matter[1] or "")["dataset_info"] if matter else None
        features = (about[0] if isinstance(about, list) else about)["features"]
        found = {item["name"]: item["dtype"] for item in features}[column]["class_label"]["names"]
        return [str(found[key]) for key in sorted(found, key=int)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):  # as anybody may write it
        return []


def _names_in(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError):
        return []
    return [name.strip() for name in found if isinstance(name, str) and name.strip()] if isinstance(found, list) else []
