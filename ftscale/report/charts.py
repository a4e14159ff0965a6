"""Pictures as Vega-Lite describes them (https://vega.github.io/vega-lite/docs/): plain dictionaries.

Data and names in them are values, never expressions: a class may be called as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
AXES = {"step": "step", "tokens": "tokens", "minutes": "minutes of training"}
"""What curves may be drawn over."""
TRAINING, HELD_OUT = "training", "held-out rows"
COLORS = ("#2f6fb2", "#d9822b", "#3a8f5c", "#9b59b6", "#c0392b", "#7f8c8d", "#b7950b", "#16a085")
"""Of series: each has a contrast of 3 and more with white and with the dark page."""


LEGEND = {"orient": "top", "columns": 3, "symbolOpacity": 1, "symbolType": "square"}


@dataclass(frozen=True)
class Chart:
    """A picture with its words."""

    name: str
    """Of letters and lines, for links and files."""
    title: str
    spec: Spec
    says: str = ""
    """What it shows, for who cannot see it, and what to look for."""


def curves(
    name: str,
    title: str,
    series: Mapping[str, Rows],
    *,
    unit: str,
    says: str = "",
    mark: Mapping[str, Any] | None = None,
) -> Chart:
    """Lines over the steps, tokens or time, with their bands where points have `low` and `high`.

    series: points by the name of the curve. `mark`: where a step is that is to be pointed out.
    """
    values = [{**point, "series": label} for label, points in series.items() for point in points]
    x = {"field": "step", "type": "quantitative", "title": "step", "axis": {"format": "~s"}}
    color = {
        "field": "series",
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(series), "range": [COLORS[place % len(COLORS)] for place in range(len(series))]},
        "legend": LEGEND if len(series) > 1 else None,
    }
    y = {"field": "value", "type": "quantitative", "title": unit, "scale": {"zero": False}}
    tooltip = [
        {"field": "series", "type": "nominal", "title": "of"},
        {"field": "step", "type": "quantitative"},
        {"field": "value", "type": "quantitative", "title": unit, "format": ".5~g"},
    ]
    layers: list[Spec] = [
        {
            "mark": {"type": "line", "point": {"size": 12} if len(values) < 200 else False, "strokeWidth": 1.6},
            "params": [{"name": "zoom", "select": {"type": "interval", "encodings": ["x"]}, "bind": "scales"}],
            "encoding": {"x": x, "y": y, "color": color, "tooltip": tooltip},
        },
    ]
    if bands := [point for point in values if "low" in point and point["low"] < point["high"]]:
        area = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": color}
        layers.insert(0, {"data": {"values": bands}, "mark": {"type": "area", "opacity": 0.2}, "encoding": area})
    if mark is not None:
        layers.append(
            {
                "data": {"values": [dict(mark)]},
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": "#888888"},
                "encoding": {"x": x, "tooltip": {"field": "step", "type": "quantitative", "title": "best step"}},
            }
        )
    return Chart(name, title, _spec({"data": {"values": values}, "layer": layers}, height=220), says)


def bars(
    name: str, title: str, values: Rows, *, x: str, y: str, says: str = "", sort: Sequence[str] | None = None
) -> Chart:
    """A bar for each value of a column `x`, as long as its `y` is; those of several parts side by side (`part`)."""
    encoding: Spec = {
        "y": {"field": x, "type": "nominal", "sort": list(sort) if sort else None, "title": None},
        "x": {"field": y, "type": "quantitative", "title": y},
        "tooltip": [{"field": x, "type": "nominal"}, {"field": y, "type": "quantitative"}],
    }
    encoding |= _by_part(values, offset="yOffset")
    parts = {"data": {"values": list(values)}, "mark": "bar", "encoding": encoding}
    return Chart(name, title, _spec(parts, height=80 + 18 * len(values)), says)


def histogram(name: str, title: str, bins: Rows, *, unit: str, says: str = "") -> Chart:
    """Bars from `low` to `high` of a height of `share`, in percent, those of each `part` in its own colour."""
    encoding = {
        "x": {"field": "low", "type": "quantitative", "title": unit, "scale": {"zero": False}},
        "x2": {"field": "high"},
        "y": {"field": "share", "type": "quantitative", "title": "% of rows", "stack": None},
        "tooltip": [{"field": name, "type": "quantitative"} for name in ("low", "high", "share", "rows")],
        **_by_part(bins),
    }
    parts = {"data": {"values": list(bins)}, "mark": {"type": "rect", "opacity": 0.6}, "encoding": encoding}
    return Chart(name, title, _spec(parts, height=180), says)


def matrix(name: str, title: str, cells: Rows, *, order: Sequence[str], says: str = "") -> Chart:
    """Squares of `rows` for each `label` and `prediction`, coloured by `share`, the part of the label's rows."""
    upright = {"axis": {"labelAngle": 0}} if len(order) <= 12 and all(len(name) <= 10 for name in order) else {}
    axes = {
        "y": {"field": "label", "type": "nominal", "sort": list(order), "title": "label"},
        "x": {"field": "prediction", "type": "nominal", "sort": list(order), "title": "prediction", **upright},
    }
    scale = {"scheme": "blues", "domain": [0, 1]}
    shares = {"field": "share", "type": "quantitative", "title": "share of the label", "scale": scale}
    tooltip = [{"field": column, "type": "nominal"} for column in ("label", "prediction", "rows", "share")]
    layers: list[Spec] = [{"mark": "rect", "encoding": {"color": shares, "tooltip": tooltip}}]
    if len(order) <= 12:
        ink = {"condition": {"test": "datum.share > 0.5", "value": "white"}, "value": "#222222"}
        layers.append({"mark": "text", "encoding": {"text": {"field": "rows", "type": "quantitative"}, "color": ink}})
    parts = {"data": {"values": list(cells)}, "encoding": axes, "layer": layers}
    return Chart(name, title, _spec(parts, height=90 + 34 * len(order)), says)


def dots(name: str, title: str, values: Rows, *, x: str, y: str, line: bool = False, says: str = "") -> Chart:
    """A point for each pair of figures. `line`: with the line on which both are equal."""
    encoding = {
        "x": {"field": x, "type": "quantitative", "scale": {"zero": False}},
        "y": {"field": y, "type": "quantitative", "scale": {"zero": False}},
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "point", "filled": True, "opacity": 0.5, "size": 18, "color": COLORS[0]},
            "encoding": {**encoding, "tooltip": [{"field": name, "type": "quantitative"} for name in (x, y)]},
        }
    ]
    if line and values:
        ends = [{x: end, y: end} for end in (_extreme(min, values, x, y), _extreme(max, values, x, y))]
        rule = {"type": "line", "color": "#888888", "strokeDash": [4, 3]}
        layers.insert(0, {"data": {"values": ends}, "mark": rule, "encoding": encoding})
    return Chart(name, title, _spec({"data": {"values": list(values)}, "layer": layers}, height=260), says)


def groups(name: str, title: str, values: Rows, *, x: str, y: str, says: str = "", line: bool = False) -> Chart:
    """Points over the ordered groups of a column `x`, with their intervals (`low` to `high`) and numbers of `rows`."""
    kind = "quantitative" if line else "ordinal"
    axis = {"field": x, "type": kind, "sort": None, "title": x, "axis": {"labelAngle": 0}}
    columns = (x, y, "low", "high", "rows")
    layers: list[Spec] = [
        {
            "mark": {"type": "rule", "color": COLORS[0]},
            "encoding": {"x": axis, "y": {"field": "low", "type": "quantitative", "title": y}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 50, "opacity": 1, "color": COLORS[0]},
            "encoding": {
                "x": axis,
                "y": {"field": y, "type": "quantitative", "scale": {"zero": False}, "title": y},
                "tooltip": [{"field": column, "type": "nominal"} for column in columns],
            },
        },
    ]
    if line:
        ends = [{x: 0, y: 0}, {x: 1, y: 1}]
        both = {axis: {"field": field, "type": "quantitative"} for axis, field in (("x", x), ("y", y))}
        rule = {"type": "line", "color": "#888888", "strokeDash": [4, 3]}
        layers.insert(0, {"data": {"values": ends}, "mark": rule, "encoding": both})
    return Chart(name, title, _spec({"data": {"values": list(values)}, "layer": layers}, height=200), says)


def _by_part(values: Rows, *, offset: str | None = None) -> Spec:
    """The colours of parts, where there are several."""
    parts = list(dict.fromkeys(row["part"] for row in values if "part" in row))
    if len(parts) < 2:
        return {"color": {"value": COLORS[0]}}
    scale = {"domain": parts, "range": list(COLORS[: len(parts)])}
    color = {"field": "part", "type": "nominal", "title": None, "scale": scale, "legend": LEGEND}
    return {"color": color, **({offset: {"field": "part", "sort": parts}} if offset else {})}


def _extreme(choose: Any, values: Rows, *columns: str) -> float:
    return choose(row[column] for row in values for column in columns)


def _spec(parts: Spec, *, height: int) -> Spec:
    """A whole picture, as wide as the page and so many pixels high, with its axes."""
    sizes = {"width": "container", "height": height, "autosize": {"type": "fit", "contains": "padding"}}
    legible = {"config": {"axis": {"labelOverlap": "greedy", "labelSeparation": 6}}}
    return {"$schema": SCHEMA, **sizes, **parts, **legible}
