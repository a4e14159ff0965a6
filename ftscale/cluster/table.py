"""`ftscale table`: the results of several runs side by side, and over seeds their mean and deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftscale.base.errors import UserError
from ftscale.cluster.records import read_result
from ftscale.config import Config, load_config
from ftscale.config.load import differences
from ftscale.config.own_task import reading_of_strangers
from ftscale.data.chat import template_name

SHOWN = "/"
"""Metrics with this in their names (per class) are left out."""

Row = dict[str, str]


def result_table(run_folders: Sequence[Path]) -> list[Row]:
    """A row for each finished run, with the settings that differ and its metrics.

    After runs that differ in their seed alone comes a row with mean and sample standard deviation, `0.91 +- 0.02 (5)`.
    A folder that holds runs in its folders (an array's) stands for them.
    Raises UserError: no run there.
    """
    folders = [member for folder in run_folders for member in _runs_in(folder)]
    if not folders:
        raise UserError(f"no run in {', '.join(map(str, run_folders))}; name run folders, or the folder of an array.")
    with reading_of_strangers():
        configs = {folder: load_config(folder / "config.yaml") for folder in folders}
    varying = _varying(list(configs.values()))
    results = {folder: read_result(folder) for folder in folders}
    groups: dict[tuple[str, ...], list[Path]] = {}
    for folder in folders:
        groups.setdefault(tuple(_value(configs[folder], name) for name in varying if name != "seed"), []).append(folder)
    metrics = sorted({name for result in results.values() for name in result.get("metrics", {}) if SHOWN not in name})
    rows = []
    for members in groups.values():
        for folder in members:
            settings = {name: _value(configs[folder], name) for name in varying}
            values = {name: _shown(results[folder].get("metrics", {}).get(name)) for name in metrics}
            rows.append(
                {"run": folder.name, **settings, "status": results[folder].get("status", "unfinished"), **values}
            )
        if len(members) > 1 and "seed" in varying:
            rows.append(_summary(members, configs, results, varying=varying, metrics=metrics))
    return rows


def as_text(rows: Sequence[Row]) -> str:
    """Write the rows as lines of text, below their names and in aligned columns."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    lines = ["  ".join(name.ljust(widths[name]) for name in names)]
    lines += ["  ".join(row[name].ljust(widths[name]) for name in names) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _summary(
    members: Sequence[Path],
    configs: dict[Path, Config],
    results: dict[Path, dict[str, Any]],
    *,
    varying: Sequence[str],
    metrics: Sequence[str],
) -> Row:
    done = [results[folder]["metrics"] for folder in members if results[folder].get("metrics")]
    row = {"run": "mean +- deviation"}
    row |= {name: "" if name == "seed" else _value(configs[members[0]], name) for name in varying}
    row["status"] = f"{len(done)} of {len(members)}"
    for name in metrics:
        values = [found[name] for found in done if found.get(name) is not None]
        spread = f" +- {statistics.stdev(values):.3g}" if len(values) > 1 else ""
        row[name] = f"{statistics.fmean(values):.4g}{spread} ({len(values)})" if values else ""
    return row


def _runs_in(folder: Path) -> list[Path]:
    if (folder / "config.yaml").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def _varying(configs: Sequence[Config]) -> list[str]:
    """Settings in which some run differs from the first, without its folder."""
    names = {line.partition(":")[0]: None for config in configs[1:] for line in differences(configs[0], config)}
    return [name for name in names if name != "run_folder"]


def _value(config: Config, name: str) -> str:
    value: Any = config.model_dump(mode="json")
    for part in name.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part)
    if name == "task.chat_template" and value is not None:
        return template_name(value)
    return value if isinstance(value, str) else json.dumps(value)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else ""
