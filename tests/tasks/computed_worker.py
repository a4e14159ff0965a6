"""One rank of runs whose writer of computed columns is slow: the other ranks must not read before it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from launching import listed_jobs

from ftscale.config import parse_config
from ftscale.run import frozen
from ftscale.run.train import train

SLOW_S = 2.0  # after the last rank has given its values
new_column = frozen.new_column


@contextmanager
def slow(*arguments: Any) -> Iterator[Any]:
    with new_column(*arguments) as values:
        yield values
        time.sleep(SLOW_S)


if __name__ == "__main__":
    frozen.new_column = slow
    frozen._forget = lambda companion: None  # nothing is between the last values and the reading of all
    for job in listed_jobs():
        train(parse_config(job, source="test"))
