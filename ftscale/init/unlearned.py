"""Data of tasks that ftscale does not have yet, by files, columns and values, so that nothing else is made of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ftscale.init.draft import words
from ftscale.init.look import Look
from ftscale.init.markup import ARCHIVES, no_archive, no_format, no_task, refuse_markup
from ftscale.init.parts import NO_ROWS

LOOKED_AT = 10_000
"""Characters of a text."""
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus")
SOUND_FOLDERS = ("wavs", "wav", "audio", "clips", "recordings")
MASKS = re.compile(r"masks|.*annot(ations?)?|annotations?|segmentation.*|panoptic.*", re.IGNORECASE)
"""Folders of masks, one for each image. Not `mask` and `with_mask`, which are classes of faces."""
BOXES = (frozenset(words("xmin ymin xmax ymax")), frozenset(words("x_min y_min x_max y_max")))
USERS = frozenset(words("userid user_id user reviewerid"))
ITEMS = frozenset(words("movieid itemid item_id movie_id productid product_id asin song_id business_id"))


def refuse_files(path: str, files: Sequence[str]) -> None:
    """Raise UserError for a folder whose files are of a task that ftscale does not have."""
    ends = [os.path.splitext(file)[1].lower() for file in files]
    folders = {part for file in files for part in os.path.relpath(file, path).split(os.sep)[:-1]}
    if any(end in SOUNDS for end in ends):
        raise no_task(path, "speech", f"{sum(end in SOUNDS for end in ends)} sound files", "none; it reads no sound")
    packed = [file for file in files if file.lower().endswith((*ARCHIVES, ".zip"))]
    if packed and all(file in packed or NO_ROWS.fullmatch(os.path.basename(file)) for file in files):
        raise no_archive(packed[0])
    images = any(end in (".jpg", ".jpeg", ".png", ".bmp") for end in ends)
    if images and any(MASKS.fullmatch(folder) for folder in folders) and ".xml" not in ends:
        seen = f"the folder {next(folder for folder in sorted(folders) if MASKS.fullmatch(folder))} beside its images"
        raise no_task(path, "segmentation", seen, "image_classification of images in a folder for each class")
    if images and ".xml" in ends:
        raise no_task(path, "detection", "an XML file beside images", "image_classification of what the boxes hold")
    if ends and set(ends) <= {".xml", ".dtd"}:
        with open(max(files, key=os.path.getsize), encoding="utf-8", errors="replace") as stream:
            refuse_markup(path, stream.read(LOOKED_AT))
        raise no_format(path, "XML files")


def refuse_rows(found: Look) -> None:
    """Raise UserError for rows of a task that ftscale does not have."""
    for what, seen, nearest in KINDS:
        if (said := seen(found)) is not None:
            raise no_task(found.path, what, said, nearest)


# ---------------------------------------------------------------- columns


def _named(found: Look) -> dict[str, str]:
    return {str(column.name).strip().lower(): str(column.name) for column in found.columns}


def _preferences(found: Look) -> str | None:
    named = _named(found)
    for pair in (("chosen", "rejected"), ("preferred", "dispreferred"), ("response_a", "response_b")):
        if set(pair) <= named.keys():
            return f"columns {pair[0]} and {pair[1]}"
    return None


def _good_or_bad(found: Look) -> str | None:
    labels = found.column("label")
    chat = found.column("messages") or found.column("conversations") or found.column("completion")
    if chat is not None and labels is not None and labels.values and all(isinstance(it, bool) for it in labels.values):
        return f"a column {chat.name} and a label of true and false"
    return None


def _ratings(found: Look) -> str | None:
    named = _named(found)
    users, items = USERS & named.keys(), ITEMS & named.keys()
    return f"columns {named[min(users)]} and {named[min(items)]}" if users and items else None


def _captions(found: Look) -> str | None:
    if {"image_id", "caption"} <= _named(found).keys():
        return "columns image_id and caption"
    return "annotations with captions, as COCO has them" if "caption" in _annotation(found) else None


def _segments(found: Look) -> str | None:
    return "annotations with segments, as COCO has them" if "segments_info" in _annotation(found) else None


def _annotation(found: Look) -> dict[str, Any]:
    """The first annotation of a document as COCO has them; empty = there is none."""
    column = found.column("annotations") if found.column("images") else None
    first = column.values[0] if column is not None and column.values else None
    return first[0] if isinstance(first, list) and first and isinstance(first[0], dict) else {}


def _boxes(found: Look) -> str | None:
    named = _named(found)
    if {"images", "annotations"} <= named.keys():
        return "images and annotations, as COCO has them"
    for names in BOXES:
        if names <= named.keys():
            return f"columns {', '.join(sorted(names))}"
    objects = found.column("objects")
    if objects is not None and objects.values and isinstance(objects.values[0], dict) and "bbox" in objects.values[0]:
        return "a column of objects with boxes"
    return None


def _sounds(found: Look) -> str | None:
    beside = Path(found.path).absolute().parent
    if Path(found.path).name == "metadata.csv" and any((beside / name).is_dir() for name in SOUND_FOLDERS):
        return "metadata.csv beside a folder of sounds"
    for column in found.columns:
        texts = [value for value in column.values[:100] if isinstance(value, str)]
        if texts and all(text.lower().endswith(SOUNDS) for text in texts):
            return f"a column {column.name} of sound files"
        if any(isinstance(value, dict) and "sampling_rate" in value for value in column.values[:1]):
            return f"a column {column.name} of sounds"
    return None


KINDS: tuple[tuple[str, Callable[[Look], str | None], str], ...] = (
    (
        "learning from preferences",
        _preferences,
        "causal_lm of the good answers alone (--task causal_lm takes the column where it holds chats or texts)",
    ),
    (
        "learning from good and bad answers",
        _good_or_bad,
        "causal_lm of the good ones alone, in a file of their own",
    ),
    ("captions of images", _captions, "causal_lm of the captions alone, without their images"),
    ("segmentation", _segments, "image_classification of images in a folder for each class"),
    ("detection", _boxes, "image_classification of images cut out along the boxes, in a folder for each class"),
    ("recommendation", _ratings, "none; text_classification learns from texts of the items, where there are any"),
    ("speech", _sounds, "none; it reads no sound, but the texts beside it are rows for causal_lm"),
)
"""What the data are for, what tells it, and what ftscale has instead."""
