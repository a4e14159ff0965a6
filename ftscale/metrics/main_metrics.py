"""Which of all scores a line, a table or a curve shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def main_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """The names of these: none of single classes, nor micro averages that are the accuracy once more."""
    accuracy = metrics.get("accuracy")
    again = [name for name, value in metrics.items() if name.endswith("_micro") and value == accuracy]
    return [name for name in metrics if "/" not in name and name not in again]
