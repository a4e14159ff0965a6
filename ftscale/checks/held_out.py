"""Held-out rows whose input stands in the training part too, found as `data.eval_ratio` will draw them."""

from __future__ import annotations

import numpy as np

from ftscale.config import Config
from ftscale.data.census import content_of, shared
from ftscale.data.prepare import split_rows
from ftscale.data.sources import read_rows
from ftscale.tasks.base import Task
from ftscale.tasks.rows import left_out


def shared_with_held_out(config: Config, task: Task) -> tuple[int, int]:
    """How many of the rows that are held out have the input of a training row, and how many are held out."""
    data = config.data
    held = split_rows(
        data.train, data=data, roles=task.columns, seed=config.seed, is_used=lambda row: not left_out(task, row)
    )
    parts: dict[bool, list[list[int]]] = {False: [], True: []}
    for index, source in enumerate(data.train):
        for number, row in enumerate(read_rows(source, roles=task.columns, setting=f"data.train[{index}]")):
            if not left_out(task, row):
                parts[number in held[index]].append(content_of(row))
    train, evaluation = (np.array(parts[is_held], dtype=np.int64).reshape(-1, 2) for is_held in (False, True))
    return shared(train, evaluation), len(evaluation)
