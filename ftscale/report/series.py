"""Curves of a run, cut to as many points as a screen has: what is left out of a stretch is within its band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ftscale.report.facts import Line, Run, number

MOST_POINTS = 600
"""Of a curve. A longer one is cut into so many stretches of equal numbers of steps."""

Point = dict[str, Any]


def training_curve(run: Run, name: str) -> list[Point]:
    """A figure of the steps: where each stretch ends (`step`, `tokens`, `minutes`), its mean, `low` and `high`."""
    steps = [line for line in run.steps if number(line.get(name)) is not None]
    values = np.array([line[name] for line in steps], dtype=np.float64)
    ends = _ends(steps)
    points = []
    for places in np.array_split(np.arange(len(steps)), min(len(steps), MOST_POINTS)) if steps else ():
        of_stretch = values[places]
        figures = {"value": of_stretch.mean(), "low": of_stretch.min(), "high": of_stretch.max()}
        points.append({**ends[places[-1]], **{key: _short(value) for key, value in figures.items()}})
    return points


def evaluation_curve(run: Run, name: str) -> list[Point]:
    """A score of the evaluation rows, by the step."""
    scored = [line for line in run.evaluations if number(line.get(name)) is not None]
    tokens = {end["step"]: end["tokens"] for end in _ends(run.steps)}
    return [
        {
            "step": line["step"],
            "tokens": tokens.get(line["step"], 0),
            "minutes": _short(line.get("time_s", 0) / 60),
            "value": _short(line[name]),
        }
        for line in scored
    ]


def _ends(steps: Sequence[Line]) -> list[Point]:
    """How far a run is at the end of each step: in steps, in tokens, and in minutes of training over all starts."""
    tokens = np.cumsum([number(line.get("tokens")) or 0 for line in steps])
    minutes = np.cumsum([number(line.get("step_s")) or 0 for line in steps]) / 60
    return [
        {"step": line["step"], "tokens": int(at), "minutes": _short(passed)}
        for line, at, passed in zip(steps, tokens, minutes, strict=True)
    ]


def _short(value: float) -> float:
    """Four significant digits, which is more than a picture has."""
    return float(f"{value:.5g}")
