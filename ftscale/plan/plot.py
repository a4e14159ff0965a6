"""A picture of a plan: memory by kind of each strategy that fits, as stacked bars against the device's line."""

from __future__ import annotations

from pathlib import Path

from ftscale.base.errors import UserError
from ftscale.plan.forecast import Plan
from ftscale.plan.memory import KINDS, Memory

BARS = 10
GIB = 2**30


def draw(plan: Plan, path: Path) -> None:
    """Write a PNG file. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("--plot needs matplotlib; pip install 'ftscale[plot]'") from error
    bars: list[tuple[str, Memory]] = [(f"as configured\n{plan.strategy}", plan.memory)]
    for choice in plan.choices[:BARS]:
        name = f"{choice.strategy}\n{choice.weights}" + ("\ncheckpointing" if choice.checkpointing else "")
        bars.append((name, choice.memory))
    figure = Figure(figsize=(1.2 * len(bars) + 3, 5), layout="constrained")
    axes = figure.subplots()
    bottom = [0.0] * len(bars)
    for kind in KINDS:
        sizes = [memory.kinds[kind] / GIB for _, memory in bars]
        if any(sizes):
            axes.bar(range(len(bars)), sizes, bottom=bottom, label=kind)
            bottom = [low + size for low, size in zip(bottom, sizes, strict=True)]
    axes.axhline(plan.device.memory / GIB, color="black", linestyle="--", label=plan.device.name)
    axes.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.set_ylabel("GiB a device")
    axes.legend(fontsize=8)
    figure.savefig(path)
