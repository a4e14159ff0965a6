"""Sizes in the settings of models and adapters that nobody means, told before memory or time is given to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError

LAYERS = re.compile(r"(^|_)(n_?|num_)(\w+_)?(layers?|blocks)$|(encoder|decoder)_layers$|(^|_)depths?$")
MOST_LAYERS = 2000
"""Of all layers, 126 is the most that a language model has."""
SIZES = re.compile(
    r"^(n|d|num)_|(^|_)(size|sizes|dim|dims|width|length|heads|experts|positions|embeddings|channels|labels|filters)$"
)
MOST_SIZE = 10**8
"""Of anything else that is counted: a million tokens are a large vocabulary, ten million a long context."""
RANKS = re.compile(r"(^|_)(r|rank|ranks)$|^rank_pattern$|^num_virtual_tokens$")
MOST_RANK = 2**16
MOST_ITEMS = 100_000
"""Of a list of sizes."""
MOST_PARAMETERS = 10**13
"""Of a whole model: ten times the largest that are published."""
TOO_LARGE = ("can't allocate memory", "calculation overflowed", "negative dimension", "Invalid sizes", "bad allocation")
"""What torch says of sizes for which it has no memory, or no number."""


def size_problems(values: Mapping[str, Any], *, setting: str) -> list[str]:
    """A sentence for each size that is out of all proportion, in sections inside too. `setting`: where they stand."""
    problems = []
    for name, value in values.items():
        where = f"{setting}.{name}"
        if isinstance(value, Mapping):
            most, kind = _limit(name)
            inner = {f"{key}": number for key, number in value.items()}
            if kind:
                problems += _too_large(where, list(inner.values()), most, kind)
            problems += size_problems(inner, setting=where)
        elif name == "layer_replication" and isinstance(value, (list, tuple)):
            problems += _too_large(where, [_layers_of(value)], MOST_LAYERS, "layers")
        else:
            most, kind = _limit(name)
            if kind:
                problems += _too_large(where, value if isinstance(value, (list, tuple)) else [value], most, kind)
    return problems


def check_saved_sizes(folder: Path, *names: str) -> None:
    """Raise UserError for such sizes in the JSON files of a saved model; those that are not there are passed over."""
    problems = []
    for path in (folder / name for name in names):
        if path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{str(path)!r} is not JSON ({error}); save the model again.") from error
            problems += size_problems(values, setting=str(path)) if isinstance(values, dict) else []
    if problems:
        raise UserError(*problems)


@contextmanager
def told_as_too_large(setting: str) -> Iterator[None]:
    """Turns torch's refusal to reserve memory for a model, inside the `with`, into a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in TOO_LARGE):
            raise
        said = str(error).strip().splitlines() or ["out of memory"]
        raise UserError(
            f"{setting} is larger than the memory here ({said[0].rstrip('.')}); correct its sizes, or take a larger "
            "machine."
        ) from error


def _limit(name: str) -> tuple[int, str]:
    """The most that a setting of this name may be, and what it counts; "" where it counts nothing."""
    if LAYERS.search(name):
        return MOST_LAYERS, "layers"
    if RANKS.search(name):
        return MOST_RANK, "ranks" if "rank" in name or name.endswith("r") else "tokens"
    return (MOST_SIZE, "of a size") if SIZES.search(name) else (0, "")


def _too_large(where: str, values: list[Any] | tuple[Any, ...], most: int, kind: str) -> list[str]:
    numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    if len(numbers) > MOST_ITEMS:
        return [f"{where} has {len(numbers)} numbers, and {MOST_ITEMS} are the most; correct it."]
    largest = max(numbers, default=0)
    if largest <= most:
        return []
    shown = str(largest) if largest < 10**30 else "over 10**30"
    what = "" if kind == "of a size" else f" {kind}"
    return [f"{where} = {shown} is more than the {most}{what} that any model has; correct it."]


def _layers_of(replication: list[Any] | tuple[Any, ...]) -> int:
    """Layers of a model that peft makes of [[first, end], ...]."""
    pairs = [pair for pair in replication if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return sum(max(end - start, 1) for start, end in pairs if isinstance(start, int) and isinstance(end, int))
