"""What the scored rows show: which are wrong, of which classes, lengths and sources, and how sure the model was.

What is shown depends on what was noted (ftscale/train/row_records.py), not on the task: each kind of column has its
picture.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ftscale.report.charts import Chart, dots, groups, histogram, matrix
from ftscale.tasks.positions import BY_POSITION, FIRST_POSITIONS, TARGETS_BY_POSITION
from ftscale.train.row_records import OF_GROUP, out_of_order

MOST_CLASSES = 24
"""In a matrix: of more, those that are confused most."""
MOST_DOTS = 3000
BINS = 10
WORST = 25
SEEN = ("where", "sample", "length", "input", "words", "targets", BY_POSITION, TARGETS_BY_POSITION)
OF_ANSWERS = ("loss", "prediction", "label", "score")


@dataclass(frozen=True)
class Marked:
    """A cell of a table: pieces of text, and whether each is marked."""

    pieces: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Table:
    """Rows of cells under names."""

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[Any]]
    says: str = ""


@dataclass
class Scored:
    """Pictures and tables of the scored rows of a part."""

    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    """What sentences are made of: `accuracy`, `majority`, `calibration_error`."""


def scored_rows(records: Any, *, part: str, unit: str) -> Scored:
    """Everything that there is to show of an Arrow table of records. `unit`: what lengths are counted in."""
    found = Scored()
    columns = set(records.column_names)
    labels, guesses = (_values(records, name) for name in ("label", "prediction"))
    kind = _kind(labels, guesses)
    if kind == "class":
        _add_classes(found, labels, guesses, part=part)
        if "score" in columns:
            _add_calibration(found, labels, guesses, _numbers(records, "score"), part=part)
    elif kind == "number":
        _add_numbers(found, labels, guesses, part=part)
    elif kind == "tags":
        _add_tags(found, labels, guesses, part=part)
    right = _rightness(records, kind, labels, guesses)
    name, values = right if right else ("loss", _numbers(records, "loss"))
    if right or not _is_of_many_rows(values):
        _add_by_length(found, _numbers(records, "length"), values, name=name, part=part, unit=unit)
    mean = partial(_interval, values, name)
    if BY_POSITION in columns:
        _add_by_position(found, records, part=part)
        name, mean = "perplexity", partial(_perplexity, _numbers(records, "loss"), _numbers(records, "targets"))
    files = [place.rpartition(":")[0] or place for place in _values(records, "where")]
    _add_by_group(found, "file", files, mean, name=name)
    for column in records.column_names:
        if column.startswith(OF_GROUP):
            _add_by_group(found, column.removeprefix(OF_GROUP), _values(records, column), mean, name=name)
    found.tables += _worst(records, kind, labels, guesses)
    return found


# ---------------------------------------------------------------- classes


def _add_classes(found: Scored, labels: list[str], guesses: list[str], *, part: str) -> None:
    support, named = Counter(labels), Counter(guesses)
    right: Counter[str] = Counter()
    confused: Counter[tuple[str, str]] = Counter(zip(labels, guesses, strict=True))
    for (label, guess), number in confused.items():
        right[label] += number * (label == guess)
    found.facts["accuracy"] = sum(right.values()) / len(labels)
    found.facts["majority"] = max(support.values()) / len(labels)
    order = _most_confused(confused, support)
    cells = [
        {"label": label, "prediction": guess, "rows": number, "share": round(number / support[label], 4)}
        for (label, guess), number in sorted(confused.items())
        if label in order and guess in order
    ]
    few = "" if len(support | named) <= MOST_CLASSES else f" The {MOST_CLASSES} classes with the most errors are shown."
    says = f"A row of squares is a class, by what its rows were taken for; the diagonal is right.{few}"
    found.charts.append(matrix(f"confusion-{part}", "Which class is taken for which", cells, order=order, says=says))
    rows = []
    for label in sorted(support | named, key=lambda name: (-(support[name] - right[name]), name)):
        precision = right[label] / named[label] if named[label] else None
        recall = right[label] / support[label] if support[label] else None
        both = (precision or 0) + (recall or 0)
        f1 = 2 * (precision or 0) * (recall or 0) / both if both else 0.0
        wrong = [(number, guess) for (of, guess), number in confused.items() if of == label and guess != label]
        most = max(wrong, default=None)
        rows.append([label, support[label], precision, recall, f1, f"{most[1]} ({most[0]})" if most else ""])
    names = ["class", "rows", "precision", "recall", "F1", "most often taken for"]
    found.tables.append(Table("Classes, those with the most errors first", names, rows))


def _most_confused(confused: Counter[tuple[str, str]], support: Counter[str]) -> list[str]:
    """The classes that are shown, by name."""
    errors: Counter[str] = Counter(dict.fromkeys(support, 0))
    for (label, guess), number in confused.items():
        if label != guess:
            errors[label] += number
            errors[guess] += number
    chosen = [label for label, _ in errors.most_common(MOST_CLASSES)]
    return sorted(chosen)


def _add_calibration(found: Scored, labels: list[Any], guesses: list[Any], scores: np.ndarray, *, part: str) -> None:
    """How often guesses are right that the model gives a chance (Guo et al. 2017, arXiv:1706.04599)."""
    there = ~np.isnan(scores)
    right = np.array([label == guess for label, guess in zip(labels, guesses, strict=True)])[there]
    scores = scores[there]
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return
    places = np.minimum((scores * BINS).astype(int), BINS - 1)
    values, error = [], 0.0
    for place in range(BINS):
        chosen = places == place
        if chosen.any():
            share, chance = right[chosen].mean(), scores[chosen].mean()
            error += chosen.mean() * abs(share - chance)
            values.append({"chance": round(float(chance), 4), **_interval(right[chosen].astype(float), "right")})
    found.facts["calibration_error"] = error
    says = (
        "Each point is a tenth of the scale of the model's own chances. Below the line it is surer than it should be. "
        f"Expected calibration error {error:.3f}."
    )
    title = "Is it as often right as it thinks"
    found.charts.append(groups(f"calibration-{part}", title, values, x="chance", y="right", line=True, says=says))


# ---------------------------------------------------------------- numbers and tags


def _add_numbers(found: Scored, labels: list[float], guesses: list[float], *, part: str) -> None:
    comparable = _comparable(labels, guesses)
    pairs = [
        {"label": _short(label), "prediction": _short(guess), "residual": _short(guess - label)}
        for label, guess in zip(labels, guesses, strict=True)
        if math.isfinite(label) and math.isfinite(guess)
    ]
    shown = pairs[:: max(len(pairs) // MOST_DOTS, 1)]
    says = "On the line a prediction is the label." if comparable else "Their order counts: they are of unlike scales."
    title = "Predictions by label"
    chart = dots(f"predictions-{part}", title, shown, x="label", y="prediction", line=comparable, says=says)
    found.charts.append(chart)
    if not comparable:
        return
    says = "Above 0 it is guessed too high. A slope is a mean that everything is drawn to."
    found.charts.append(dots(f"residuals-{part}", "Errors by label", shown, x="label", y="residual", says=says))


def _is_of_many_rows(losses: np.ndarray) -> bool:
    """Whether a loss is of a whole block of rows, so that each of them has the same one."""
    return len(losses) > 2 and len(np.unique(losses[~np.isnan(losses)])) <= 1 + len(losses) // 1000


def _comparable(labels: Sequence[float], guesses: Sequence[float]) -> bool:
    """Whether predictions are of the labels' scale: no cosines of pairs that were judged from 1 to 5."""
    low, high = np.nanmin(labels), np.nanmax(labels)
    return bool(low - (high - low) / 2 <= np.nanmedian(guesses) <= high + (high - low) / 2) and bool(
        np.nanstd(guesses) > 0.2 * np.nanstd(labels)
    )


def _add_tags(found: Scored, labels: list[list[str]], guesses: list[list[str]], *, part: str) -> None:
    """A word is a row of the matrix, O that is O left out: nearly all are."""
    pairs = [
        pair
        for truth, guess in zip(labels, guesses, strict=True)
        for pair in zip(truth, guess, strict=False)
        if pair != ("O", "O")
    ]
    if pairs:
        _add_classes(found, [label for label, _ in pairs], [guess for _, guess in pairs], part=part)
        found.facts.clear()  # of words, not of rows


# ---------------------------------------------------------------- lengths and sources


def _add_by_length(found: Scored, lengths: np.ndarray, values: np.ndarray, *, name: str, part: str, unit: str) -> None:
    """The mean of tenths of the rows, by their lengths."""
    there = ~np.isnan(values)
    lengths, values = lengths[there], values[there]
    if not len(values) or lengths.min() == lengths.max():
        return
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)).round())
    points = []
    for low, high in itertools.pairwise(edges):
        chosen = (lengths >= low) & ((lengths < high) | ((high == edges[-1]) & (lengths == high)))
        if chosen.any():
            points.append({"length": f"{low:.0f} to {high:.0f}", **_interval(values[chosen], name)})
    says = f"Each point is about a tenth of the rows, with the interval of 95 % of its mean; lengths in {unit}."
    title = f"{name.capitalize()} by length"
    found.charts.append(groups(f"length-{part}", title, points, x="length", y=name, says=says))


def _add_by_position(found: Scored, records: Any, *, part: str) -> None:
    """Perplexity by the number of tokens before a target (`token_sums.sums_of_positions`)."""
    losses, targets = (_values(records, name) for name in (BY_POSITION, TARGETS_BY_POSITION))
    points, first = [], 1
    for place in range(max(map(len, losses))):
        there = [row for row, of_row in enumerate(losses) if place < len(of_row) and of_row[place] is not None]
        last = FIRST_POSITIONS * 2**place - 1
        if there:
            of_place = (np.array([values[row][place] for row in there]) for values in (losses, targets))
            points.append({"tokens before": f"{first} to {last}", **_perplexity(*of_place)})
        first = last + 1
    says = (
        "How well tokens are foretold, by how many are before them, with the interval of 95 %. It falls as far as the "
        "model makes use of more of them; where it rises, texts are longer than the model can use."
    )
    title = "Perplexity by position"
    found.charts.append(groups(f"position-{part}", title, points, x="tokens before", y="perplexity", says=says))


def _add_by_group(
    found: Scored, of: str, names: list[str], mean: Callable[[np.ndarray], dict[str, Any]], *, name: str
) -> None:
    """A table of what each group of rows comes to, the worst first. `of`: what makes the groups."""
    groups = np.array(names)
    distinct = list(dict.fromkeys(names))
    if len(distinct) < 2:
        return
    rows = []
    for group in distinct:
        about = mean(groups == group)
        if about["rows"]:
            rows.append([group, about["rows"], about[name], f"{about['low']:.4g} to {about['high']:.4g}"])
    rows.sort(key=lambda row: row[2], reverse=name in ("loss", "perplexity"))
    says = f"The worst {WORST} of {len(rows)}." if len(rows) > WORST else "The worst first."
    title = f"{name.capitalize()} by {of}"
    found.tables.append(Table(title, [of, "rows", name, "interval of 95 %"], rows[:WORST], says))


def _interval(values: np.ndarray, name: str, chosen: np.ndarray | bool = True) -> dict[str, Any]:
    """The mean, and its interval of 95 %: Wilson's for shares (1927), else the normal one."""
    values = values[chosen & ~np.isnan(values)]
    number = len(values)
    if not number:
        return {"rows": 0}
    mean = float(values.mean())
    if set(np.unique(values)) <= {0.0, 1.0}:
        z2 = 1.96**2
        middle = (mean + z2 / (2 * number)) / (1 + z2 / number)
        half = 1.96 * math.sqrt(mean * (1 - mean) / number + z2 / (4 * number**2)) / (1 + z2 / number)
    else:
        middle, half = mean, 1.96 * float(values.std(ddof=1)) / math.sqrt(number) if number > 1 else 0.0
    return {name: _short(mean), "low": _short(middle - half), "high": _short(middle + half), "rows": number}


def _perplexity(losses: np.ndarray, targets: np.ndarray, chosen: np.ndarray | bool = True) -> dict[str, Any]:
    """Of all targets together, with the interval of 95 % over rows: that of a ratio of sums (Cochran 1977, ch. 6)."""
    chosen = chosen & ~np.isnan(losses)
    losses, targets = losses[chosen], targets[chosen]
    number, all_targets = len(losses), targets.sum()
    if not number:
        return {"rows": 0}
    mean = float((losses * targets).sum() / all_targets)
    off = targets * (losses - mean)
    half = 1.96 * math.sqrt(number / (number - 1) * float((off**2).sum())) / all_targets if number > 1 else 0.0
    low, middle, high = (_short(math.exp(min(value, 700.0))) for value in (mean - half, mean, mean + half))
    return {"perplexity": middle, "low": low, "high": high, "rows": number}


# ---------------------------------------------------------------- single rows


def _worst(records: Any, kind: str, labels: list[Any], guesses: list[Any]) -> Iterator[Table]:
    """The rows with the largest losses, and the wrong ones of which the model was surest."""
    losses, inputs = _numbers(records, "loss"), _values(records, "input")
    names = [name for name in ("loss", "score") if name in records.column_names]
    figures = {name: _numbers(records, name) for name in names}
    others = [name for name in records.column_names if name not in (*SEEN, *OF_ANSWERS)]
    words = _values(records, "words")

    def table(title: str, places: Sequence[int], says: str) -> Table:
        rows = []
        for place in places:
            cells: list[Any] = [figures[name][place] for name in names]
            if kind:
                cells += [*_told(labels[place], guesses[place])]
            if others:
                told = ((name.removeprefix(OF_GROUP), records.column(name)[place].as_py()) for name in others)
                cells.append(", ".join(f"{name} {_cell(value)}" for name, value in told))
            read = _with_tags(words[place], labels[place], guesses[place]) if words[place] else inputs[place] or ""
            rows.append([*cells, read, short_place(records.column("where")[place].as_py())])
        middle = [*(["label", "prediction"] if kind else []), *(["more"] if others else [])]
        return Table(title, [*names, *middle, "what the model read", "row"], rows, says)

    if kind == "number" and len(labels) > 1:
        off = out_of_order(np.array(labels), np.array(guesses))
        says = "By their predictions they stand at other places among all rows than by their labels."
        yield table("Rows most out of order", np.argsort(-off, kind="stable")[:WORST].tolist(), says)
    if _is_of_many_rows(losses):
        return
    order = [int(place) for place in np.argsort(-np.nan_to_num(losses, nan=-np.inf), kind="stable")[:WORST]]
    yield table("Rows with the largest loss", [place for place in order if not np.isnan(losses[place])], "")
    if kind in ("class", "text") and "score" in figures:
        scores = figures["score"]
        wrong = [place for place in range(len(labels)) if labels[place] != guesses[place]]
        wrong = sorted((place for place in wrong if not np.isnan(scores[place])), key=lambda place: -scores[place])
        if kind == "class" and set(wrong[:WORST]) != set(order):  # else it is the same table again
            says = "Such rows are often labelled wrongly: look at them first."
            yield table("Wrong, and surest of it", wrong[:WORST], says)


def short_place(where: str) -> str:
    """File and line, without the folders before."""
    return where.replace("\\", "/").rpartition("/")[2]


def _told(label: Any, guess: Any) -> tuple[Any, Any]:
    """Label and prediction as cells; of tags only those that are not alike, with the places of their words."""
    if not isinstance(label, list):
        return label, guess
    if not isinstance(guess, list) or len(guess) != len(label) or label == guess:
        return ", ".join(map(str, label)), ", ".join(map(str, guess or []))
    unlike = [place for place, pair in enumerate(zip(label, guess, strict=True)) if pair[0] != pair[1]]
    return tuple(  # type: ignore[return-value]
        ", ".join(f"word {place + 1}: {tags[place]}" for place in unlike) for tags in (label, guess)
    )


def _with_tags(words: list[str], labels: list[str], guesses: list[str]) -> Marked:
    """Words, each that is tagged wrongly marked with its tag and the one that it was given."""
    pieces: list[tuple[str, bool]] = []
    for word, label, guess in zip(words, labels, guesses, strict=True):
        pieces += [(word, False)] if label == guess else [(f"{word} [{label}, not {guess}]", True)]
        pieces.append((" ", False))
    return Marked(pieces[:-1])


# ---------------------------------------------------------------- columns


def _kind(labels: list[Any], guesses: list[Any]) -> str:
    """What labels and predictions are: class, text, number, tags, or "" where there are none."""
    pair = next((pair for pair in zip(labels, guesses, strict=True) if None not in pair), None)
    if pair is None:
        return ""
    if isinstance(pair[0], str):
        distinct = len(set(labels))
        return "class" if distinct <= max(len(labels) / 3, 2) and distinct <= 1000 else "text"
    return "tags" if isinstance(pair[0], list) else "number"


def _rightness(records: Any, kind: str, labels: list[Any], guesses: list[Any]) -> tuple[str, np.ndarray] | None:
    """A score of each row from 0 to 1, and its name: what is better known than a loss."""
    for name in ("f1", "accuracy", "mrr@10"):
        if name in records.column_names:
            return name, _numbers(records, name)
    if kind in ("class", "tags"):
        pairs = zip(labels, guesses, strict=True)
        return "right", np.array([float(label == guess) for label, guess in pairs])
    return None


def _values(records: Any, name: str) -> list[Any]:
    if name not in records.column_names:
        return [None] * len(records)
    return records.column(name).to_pylist()


def _numbers(records: Any, name: str) -> np.ndarray:
    """A column as figures, not a number where there is none."""
    return np.array([math.nan if value is None else value for value in _values(records, name)], dtype=np.float64)


def length_histogram(parts: dict[str, dict[str, Any]], *, unit: str) -> Chart | None:
    """How long the samples of each part of the data are."""
    bins = []
    for part, about in parts.items():
        edges, counts = about["lengths"]["edges"], about["lengths"]["counts"]
        total = sum(counts) or 1
        for (low, high), number in zip(itertools.pairwise(edges), counts, strict=True):
            share = round(100 * number / total, 3)
            bins.append({"low": low, "high": high, "rows": number, "share": share, "part": part})
    if not bins:
        return None
    return histogram("lengths", "Lengths of samples", bins, unit=unit)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
