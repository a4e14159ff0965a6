"""The page: what is said and drawn of a run, or of several beside each other, as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ftscale.metrics.main_metrics import main_metrics
from ftscale.report.charts import HELD_OUT, TRAINING, Chart, bars, curves
from ftscale.report.facts import Run, number
from ftscale.report.rows import Marked, Scored, Table, length_histogram, scored_rows
from ftscale.report.series import Point, evaluation_curve, training_curve
from ftscale.report.vega import libraries
from ftscale.report.verdict import sentences
from ftscale.version import __version__

FIGURES = {
    "lr": ("Learning rate", "rate", "Of the first group of weights."),
    "grad_norm": ("Gradient norm", "norm", "Before it was clipped."),
    "tokens_per_s": ("Speed", "tokens a second", "Of all processes together."),
    "memory_bytes": ("Memory", "GiB", "The most so far on rank 0: of the GPU, or of the process without one."),
}
"""Of the optimizer steps besides the loss: title, unit, and what is to be known of each."""
UNITS = {"memory_bytes": 2.0**30}
"""What figures are divided by."""
PARTS = {"eval": "Held-out rows", "test": "Test rows"}
MOST_METRICS = 6
PLACES = ("kind", "step", "time_s")
"""What each line of metrics.jsonl has besides figures."""
HOW = "Drag to move, turn the wheel to look closer."


@dataclass
class Section:
    """A part of the page, under its title."""

    title: str
    says: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    shown: list[list[tuple[str, bool]]] = field(default_factory=list)
    """Rows of data in pieces, each with whether it is a target."""
    text: str = ""
    """As it stands, in letters of one width."""


@dataclass(frozen=True)
class Page:
    """All that stands on a page."""

    title: str
    status: str
    about: list[tuple[str, str]]
    """Names and values."""
    short: list[str]
    """What it comes to, as sentences."""
    sections: list[Section]

    @property
    def charts(self) -> list[Chart]:
        """All pictures."""
        return [chart for section in self.sections for chart in section.charts]


def page_of_run(run: Run) -> Page:
    """The page of one run."""
    found = {part: _scored(run, part) for part in PARTS}
    scored = {part: rows for part, rows in found.items() if rows is not None}
    sections = [
        Section("Curves", HOW, charts=list(_curves(run))),
        *(_rows_section(part, rows) for part, rows in scored.items()),
        _data_section(run),
        *_settings_sections(run),
    ]
    status = str(run.result.get("status") or "going on")
    return Page(run.name, status, _about(run), sentences(run, scored), _not_empty(sections))


def page_of_runs(runs: Sequence[Run]) -> Page:
    """The page of several runs: their curves over each other, and the settings that differ."""
    names = list(dict.fromkeys(name for run in runs for name in _main_metrics(run)))[:MOST_METRICS]
    rows = [_line_of(run, names) for run in runs]
    table = Table("Runs", ["run", "status", "steps", "minutes", "best step", *names], rows)
    sections = [
        Section("Runs", tables=[table]),
        Section("Settings that differ", tables=[_differing(runs)]),
        Section("Curves", HOW, charts=list(_compared(runs, names))),
    ]
    return Page(f"{len(runs)} runs", "", [], [], _not_empty(sections))


def html_of(page: Page) -> str:
    """The page as HTML. Whatever stands in data, names and settings is text in it."""
    return _template().render(
        page=page,
        specs=_in_script({chart.name: chart.spec for chart in page.charts}),
        libraries=libraries() if page.charts else "",
        version=__version__,
    )


def _not_empty(sections: Sequence[Section]) -> list[Section]:
    return [section for section in sections if section.charts or section.tables or section.shown or section.text]


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["cell"] = _cell
    environment.tests["marked"] = lambda value: isinstance(value, Marked)
    return environment.get_template("page.html")


def _in_script(value: Any) -> str:
    """JSON that ends no script and begins no comment, whatever texts are in it."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---------------------------------------------------------------- curves


def _curves(run: Run) -> Iterator[Chart]:
    best = _place_of(run, run.best_step)
    losses = {TRAINING: training_curve(run, "loss"), HELD_OUT: evaluation_curve(run, "loss")}
    there = {name: points for name, points in losses.items() if points}
    if there:
        is_cut = any(point["low"] < point["high"] for point in there.get(TRAINING, ()))
        says = "The band holds every step's loss. " if is_cut else ""
        says += "Held-out above training and rising is over-fitting; the dashed line is the best step."
        yield curves("loss", "Loss", there, unit="loss", says=says, mark=best)
    metrics = {name: evaluation_curve(run, name) for name in _main_metrics(run) if name != "loss"}
    if any(metrics.values()):
        yield curves("metrics", "Scores of the held-out rows", metrics, unit="score", mark=best)
    for name, (title, unit, says) in FIGURES.items():
        if points := _scaled(training_curve(run, name), name):
            yield curves(name, title, {title: points}, unit=unit, says=says)


def _compared(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Chart]:
    yield curves("loss", "Training loss", {run.name: training_curve(run, "loss") for run in runs}, unit="loss")
    for place, name in enumerate(dict.fromkeys(["loss", *names])):
        series = {run.name: evaluation_curve(run, name) for run in runs}
        if any(series.values()):
            yield curves(f"metric-{place}", f"Held-out rows: {name}", series, unit=name)
    for name, (title, unit, says) in FIGURES.items():
        series = {run.name: _scaled(training_curve(run, name), name) for run in runs}
        if any(series.values()):
            yield curves(name, title, series, unit=unit, says=says)


def _scaled(points: list[Point], name: str) -> list[Point]:
    by = UNITS.get(name, 1.0)
    return [{**point, **{key: point[key] / by for key in ("value", "low", "high")}} for point in points]


def _place_of(run: Run, step: int | None) -> Point | None:
    points = evaluation_curve(run, run.metric) if step else []
    return next(
        ({key: point[key] for key in ("step", "tokens", "minutes")} for point in points if point["step"] == step), None
    )


def _main_metrics(run: Run) -> list[str]:
    """Scores that a curve may show: from 0 to 1, or the one that chooses; none of single classes."""
    last = {name: value for name, value in (run.evaluations or [{}])[-1].items() if name not in PLACES}
    found = [run.metric] if run.metric in last else []
    last = {name: last[name] for name in main_metrics(last)}
    for name, value in last.items():
        if name != "loss" and (figure := number(value)) is not None and 0 <= figure <= 1:
            found.append(name)
    return list(dict.fromkeys(found))[:MOST_METRICS]


# ---------------------------------------------------------------- rows and data


def _scored(run: Run, part: str) -> Scored | None:
    records = run.records(part)
    return None if records is None or not len(records) else scored_rows(records, part=part, unit=_unit(run, part))


def _unit(run: Run, part: str) -> str:
    about = run.data.get("parts", {}).get(part, {})
    return "tokens" if about.get("in_tokens", True) else "units"


def _rows_section(part: str, rows: Scored) -> Section:
    return Section(PARTS[part], "Of the best evaluation." if part == "eval" else "", rows.charts, rows.tables)


def _data_section(run: Run) -> Section:
    parts = run.data.get("parts", {})
    section = Section("Data", "The first training rows as the model read them, targets marked, come last.")
    if not parts:
        section.says = "Training rows were streamed; here are the first of them, targets marked."
    rows = []
    for part, about in parts.items():
        for source in about["sources"]:
            dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(source["dropped"].items()))
            mean = source["total_length"] / source["kept"] if source["kept"] and about["in_tokens"] else None
            cut = source["truncated"] if about["in_tokens"] else None
            rows.append([part, source["path"], source["read"], source["kept"], cut, dropped or "none", mean])
    if rows:
        names = ["part", "source", "rows read", "samples kept", "cut", "dropped", "mean length"]
        section.tables.append(Table("What became of the rows", names, rows))
        section.tables.append(Table("To look at", ["part", *ODD.values()], [_odd(*item) for item in parts.items()]))
    if chart := length_histogram(parts, unit=_unit(run, "train")):
        section.charts.append(chart)
    values = [
        {"class": label, "rows": count, "part": part}
        for part, about in parts.items()
        for label, count in about["classes"].items()
    ]
    if values:
        order = list(parts.get("train", next(iter(parts.values())))["classes"])
        section.charts.append(bars("classes", "Classes", values, x="class", y="rows", sort=order))
    section.shown = [[(str(text), bool(is_target)) for text, is_target in row] for row in run.data.get("shown", ())]
    return section


ODD = {
    "equal_inputs": "rows whose input stands there before",
    "contradicting": "rows whose input has another label elsewhere",
    "unknown_tokens": "unknown tokens",
}


def _odd(part: str, about: Mapping[str, Any]) -> list[Any]:
    unknown = about.get("unknown_tokens")
    return [part, about["equal_inputs"], about["contradicting"], None if unknown is None else f"{unknown:.2%}"]


# ---------------------------------------------------------------- settings


def _settings_sections(run: Run) -> Iterator[Section]:
    changed = [[name, _setting(value)] for name, value in run.changed.items() if name != "run_folder"]
    yield Section(
        "Settings",
        "Those that are not the default.",
        tables=[Table("", ["setting", "value"], changed)] if changed else [],
    )
    history = [[line.get("time"), line.get("after_step"), "; ".join(line.get("changed", ()))] for line in run.history]
    if history:
        table = Table("", ["when", "after step", "what"], history)
        yield Section("Changed when it was resumed", tables=[table])
    events = [
        [
            event.get("event"),
            event["step"],
            ", ".join(
                f"{name} {_cell(value)}"
                for name, value in event.items()
                if name not in ("event", "kind", "step", "time_s")
            ),
        ]
        for event in run.events
        if event.get("event") != "saved"
    ]
    yield Section("Events", tables=[Table("", ["what", "step", "more"], events)] if events else [])
    versions = [[name, value] for name, value in run.about.get("versions", {}).items()]
    yield Section("Versions", tables=[Table("", ["package", "version"], versions)] if versions else [])
    command = run.about.get("command") or []
    yield Section(
        "Again",
        "The command of the last start. config.yaml in the run folder has every setting.",
        text=" ".join(map(str, command)),
    )


def _about(run: Run) -> list[tuple[str, str]]:
    """What it was: names and values."""
    settings, about = run.settings, run.about
    minutes = (number(run.result.get("duration_s")) or 0) / 60
    processes = about.get("world_size") or 1
    found = {
        "task": settings.get("task.name"),
        "model": settings.get("model.name"),
        "method": settings.get("method.name"),
        "machine": f"{processes} x {about['device']}" if about.get("device") else None,
        "strategy": about.get("strategy"),
        "cost": f"{minutes * processes / 60:.2g} device hours" if run.result else None,
        "started": about.get("started"),
        "commit": about.get("git"),
    }
    return [(name, str(value)) for name, value in found.items() if value]


def _line_of(run: Run, names: Sequence[str]) -> list[Any]:
    metrics, result = run.result.get("metrics") or {}, run.result
    minutes = (number(result.get("duration_s")) or 0) / 60
    scores = [number(metrics.get(name)) for name in names]
    return [run.name, result.get("status") or "going on", len(run.steps), round(minutes, 2), run.best_step, *scores]


def _differing(runs: Sequence[Run]) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run.settings if name != "run_folder"))
    rows = []
    for name in names:
        values = [_setting(run.changed.get(name, run.settings.get(name))) for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return Table("", ["setting", *(run.name for run in runs)], rows)


def _setting(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def _cell(value: Any) -> str:
    """A figure with four digits; nothing for what is not known."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
