"""ftscale, standing still at a point that FTSCALE_POINT names until the file beside it says that it may go on.

benchmarks/chaos.py runs it instead of `-m ftscale`, so that a fault strikes in a phase and not near it. The variable
holds JSON: `rank`, null for whichever comes first; `call`, a function as "module:name", or `event`, one of Python's
audit events, with `path`, a pattern that one of the event's arguments must match; `number`, of the meetings the one to
stand still at; `mark`, the file to write then. The process goes on when `mark`.go is there, or after GIVE_UP_S.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

GIVE_UP_S = 600.0


class Point:
    """Counts the meetings, and stands still at one of them."""

    def __init__(self, mark: str, number: int) -> None:
        self.mark = Path(mark)
        self.left = number

    def met(self) -> None:
        """Stand still where it is the one."""
        self.left -= 1
        if self.left:
            return
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:  # of several processes the first
            return
        go, deadline = self.mark.with_suffix(".go"), time.monotonic() + GIVE_UP_S
        while not go.exists() and time.monotonic() < deadline:
            time.sleep(0.01)


class WhenImported(importlib.abc.MetaPathFinder):
    """Has something done to a module right after its first import."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, whose loader does it."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_then(module: ModuleType) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = execute_then  # type: ignore[method-assign]
        return spec


def watch(wish: dict[str, Any]) -> None:
    """Meet the point at each call, or each event."""
    point = Point(wish["mark"], wish["number"])
    if "call" in wish:
        name, _, place = wish["call"].partition(":")
        sys.meta_path.insert(0, WhenImported(name, lambda module: wrap(module, place, point)))
        return
    pattern = re.compile(wish["path"])

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == wish["event"] and any(pattern.search(str(argument)) for argument in arguments):
            point.met()

    sys.addaudithook(hook)


def wrap(module: ModuleType, place: str, point: Point) -> None:
    """The function `place` of the module, or the method, meets the point before it does what it does."""
    *owners, name = place.split(".")
    owner: Any = module
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def meeting(*arguments: Any, **options: Any) -> Any:
        point.met()
        return function(*arguments, **options)

    setattr(owner, name, meeting)


# at import: the workers that prepare data are spawned, and import the main module under another name
WISH = json.loads(os.environ.get("FTSCALE_POINT", "null"))
if WISH and WISH["rank"] in (None, int(os.environ.get("RANK", "0"))):
    watch(WISH)

if __name__ == "__main__":
    from ftscale.__main__ import run

    run()
