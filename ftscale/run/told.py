"""What the training rows tell the task, kept in the cache: a start over prepared rows reads no row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ftscale.config import Config
from ftscale.config.own_task import file_hash
from ftscale.config.tasks.base import TaskSettings
from ftscale.data.cache import cached, place_of
from ftscale.data.heard import heard, say_once
from ftscale.data.sources import read_rows
from ftscale.methods.base import Method
from ftscale.tasks.base import Row, Task
from ftscale.tasks.rows import left_out
from ftscale.version import __version__

FORMAT = 1  # of what is kept; a new number makes old caches unread


def told_by_rows(config: Config, task: Method, fingerprints: Sequence[str]) -> dict[str, Any]:
    """`task.fit` of all training rows, or what it told before of the same ones.

    `fingerprints`: those of the sources. A stream's rows are asked at each start, since nothing of them is kept; so is
    a task that tells what JSON cannot hold.
    """
    if config.data.streaming:
        return task.fit(_training_rows(config, task))
    own: dict[str, Any] = {}

    def find_out(folder: Path) -> dict[str, Any]:
        with heard() as said:
            own.update(task.fit(_training_rows(config, task)))
        is_kept = _comes_back(own, task.settings)
        return {"files": {}, "said": said, "is_kept": is_kept, "told": own if is_kept else {}}

    kept = cached(place_of(config.data, [FORMAT, "fit", *_depends_on(task), *fingerprints]), find_out)
    for sentence in kept["said"]:
        say_once(sentence)
    if own:
        return own
    return _again(kept["told"], task.settings) if kept["is_kept"] else task.fit(_training_rows(config, task))


def _depends_on(task: Method) -> list[str]:
    """All that a task tells of its rows depends on besides these."""
    settings, own = task.written_out(task.settings), task.own
    hashes = (file_hash(settings, section="task"), file_hash(own, section="method"))
    return [__version__, settings.model_dump_json(), own.model_dump_json(), *map(str, hashes)]


def _comes_back(told: Mapping[str, Any], settings: TaskSettings) -> bool:
    """Whether JSON gives back what it was given."""
    try:
        return _again(json.loads(json.dumps(told, allow_nan=False)), settings) == told
    except (TypeError, ValueError):
        return False


def _again(kept: Mapping[str, Any], settings: TaskSettings) -> dict[str, Any]:
    """What JSON held, with settings of the types that they have there: JSON has no tuples."""
    types: dict[str, Any] = {name: field.annotation for name, field in type(settings).model_fields.items()}
    return {name: TypeAdapter(types.get(name, Any)).validate_python(value) for name, value in kept.items()}


def _training_rows(config: Config, task: Task) -> Iterator[Row]:
    for index, source in enumerate(config.data.train):
        for row in read_rows(source, roles=task.settings.roles, setting=f"data.train[{index}]"):
            if not left_out(task.settings, row):
                yield row
