"""What benchmarks/speed.py compares ftscale with: each program, the settings that it is tried at, and which is best."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

Setting = dict[str, Any]
"""A value of each axis of a grid."""
Figures = dict[str, float]

LARGE_THRESHOLDS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
"""glibc keeps freed memory, instead of giving each large piece back to the system and asking for it again."""

AXES: Mapping[str, tuple[Any, ...]] = {
    "micro_batches": (1, 2, 4, 8),
    "grouped_by_length": (True, False),
    "attention": ("sdpa", "eager"),
    "malloc": ("as it is", "large thresholds"),
}
"""The usual value first. `micro_batches`: of equal sizes, of which an optimizer step is made."""


@dataclass(frozen=True)
class Peer:
    """A program that does the same work."""

    script: str
    """Beside this file; takes RUN.yaml, a folder and the setting as JSON, and writes what speed_hf_trainer.py does."""
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: AXES)
    tasks: tuple[str, ...] | None = None
    """That it can do; None = all."""
    adapter: bool = False
    """Whether it is compared in LoRA works alone."""
    own_environment: bool = False
    """Whether its requirements do not go with ftscale's: it runs in runs/peers/NAME."""

    def does(self, run: Mapping[str, Any]) -> bool:
        """Whether it is compared in a work."""
        return (self.tasks is None or run["task"]["name"] in self.tasks) and ("adapter" in run or not self.adapter)

    def grid(self, run: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """The axes that mean something for a work."""
        images = run["task"]["name"] == "image_classification"
        return {
            axis: values
            for axis, values in self.axes.items()
            if not (images and axis in ("grouped_by_length", "attention"))
        }


PACKED = {**AXES, "packing": (False, True), "activation_checkpointing": (False, True)}

OF_VECTORS = {"cached": (0, 8, 32, 64), "attention": AXES["attention"], "malloc": AXES["malloc"]}
HF_TRAINER = ("causal_lm", "image_classification", "masked_lm", "question_answering", "seq2seq")

FTSCALE = Peer("", {"micro_batches": (1, 2, 4, 8), "malloc": AXES["malloc"]})
"""Ours: its rows lie flat, so that they need no grouping."""
PEERS = {
    "hf_trainer": Peer("speed_hf_trainer.py", tasks=(*HF_TRAINER, "text_classification", "token_classification")),
    "sentence_transformers": Peer("speed_sentence_transformers.py", OF_VECTORS, tasks=("embedding",)),
    "trl": Peer("speed_trl.py", PACKED, tasks=("causal_lm",), adapter=True, own_environment=True),
    "llamafactory": Peer("speed_llamafactory.py", PACKED, tasks=("causal_lm",), adapter=True, own_environment=True),
}


def environment_of(setting: Setting) -> dict[str, str]:
    """The variables that a setting stands for."""
    return LARGE_THRESHOLDS if setting.get("malloc") == "large thresholds" else {}


def best_settings(
    grid: Mapping[str, tuple[Any, ...]], measure: Callable[[Setting], Figures | None]
) -> tuple[Setting, Setting, list[dict[str, Any]]]:
    """The setting of the most tokens/s, that of the least memory, and all that was tried with its figures.

    An axis at a time from the usual values, twice: once for time, and from the least memory seen by then for memory.
    `measure` gives None where the program cannot run so.
    """
    tried: list[tuple[Setting, Figures | None]] = []

    def figures_of(setting: Setting) -> Figures | None:
        known = [figures for before, figures in tried if before == setting]
        if not known:
            tried.append((setting, measure(setting)))
            known = [tried[-1][1]]
        return known[0]

    def walk(start: Setting, cost: Callable[[Figures], float]) -> Setting:
        best = start
        for axis, values in grid.items():
            settings = [best, *({**best, axis: value} for value in values if value != best[axis])]
            measured = [(setting, figures) for setting in settings if (figures := figures_of(setting)) is not None]
            if measured:
                best = min(measured, key=lambda pair: cost(pair[1]))[0]
        return best

    def memory(figures: Figures) -> float:
        return figures["peak_mib"]

    fastest = walk({axis: values[0] for axis, values in grid.items()}, lambda figures: -figures["tokens_per_s"])
    ran = [(setting, figures) for setting, figures in tried if figures is not None]
    if not ran:
        raise RuntimeError("no setting of the grid ran")
    smallest = walk(min(ran, key=lambda pair: memory(pair[1]))[0], memory)
    return fastest, smallest, [{**setting, "figures": figures} for setting, figures in tried]


def python_of(name: str) -> str:
    """The Python that runs a peer. Raises SystemExit where its environment is yet to be made."""
    if not PEERS[name].own_environment:
        return sys.executable
    folder = HERE.parent / "runs/peers" / name
    if not (folder / "bin/python").exists():
        raise SystemExit(
            f"{name} needs an environment of its own: python -m venv {folder} && {folder}/bin/pip install -r "
            f"{HERE}/requirements-peers-{name}.txt"
        )
    return str(folder / "bin/python")
