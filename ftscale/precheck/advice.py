"""What a practitioner would say of a run before it: rates, batches, held-out rows, classes, evaluations, cut rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ftscale.base.errors import counted
from ftscale.config import Config

FEW_HELD_OUT = 30
"""Rows below which a score is told with its interval."""
SOME_HUNDRED = 100
"""Rows that an interval is compared with."""
LIKELY_SCORE = 0.8
"""The share that is right, or the correlation, that an interval is told for."""
RIGHT_OR_WRONG = ("accuracy", "top5_accuracy", "exact_match")
"""Metrics that are the share of rows that are right."""
CORRELATIONS = ("pearson", "spearman")
Z = 1.959964
"""The normal quantile that 95 % lie within."""
MANY_CUT = 0.5
"""Share of the rows from which on cut ones are no exception."""
MUCH_EVALUATION, FEW_EVALUATIONS, GOOD_SHARE = 0.5, 10, 0.1
"""Share of a run's time in evaluation that is told, how many evaluations are few in any case, and the share advised."""
FORWARD = 1 / 3
"""Work of a row that is scored, of one that is trained on, whose backward pass is two forwards (Kaplan 2020)."""
NAMED = 5
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Rates:
    """Learning rates of AdamW that a kind of training usually has, and those outside of which a mistake is likely."""

    kind: str
    usual: tuple[float, float]
    likely: tuple[float, float]
    advised: float


FULL = Rates("all weights of a pretrained model", (1e-6, 5e-4), (1e-7, 5e-3), 5e-5)  # BERT 2e-5 to 5e-5; 7 B 1e-5
HEAD = Rates("a new head on frozen weights", (1e-4, 1e-2), (1e-5, 1e-1), 1e-3)
SCRATCH = Rates("random weights", (1e-4, 3e-3), (1e-6, 3e-2), 5e-4)
LOW_RANK = Rates("a low-rank adapter", (1e-4, 2e-3), (2e-5, 1e-2), 2e-4)  # Hu 2021, Dettmers 2023: 1e-4 to 5e-4
PROMPT = Rates("a learned prompt", (1e-3, 3e-1), (1e-5, 3.0), 1e-2)  # Lester 2021: 0.3; Li and Liang 2021: 5e-5 up
ADAPTERS = {
    **dict.fromkeys(("lora", "adalora", "loha", "lokr"), LOW_RANK),
    **dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning"), PROMPT),
}
"""Of the others that peft ships rates are too different, or too little known."""
TIMES = {"sgd": 100.0, "lion": 0.2}
"""Rates of an optimizer, of AdamW's; Lion's are 3 to 10 times smaller (Chen 2023)."""


def rate_warnings(config: Config) -> list[str]:
    """A sentence where `optimizer.lr` is far from what trains such weights."""
    rates, why = _rates(config)
    if rates is None:
        return []
    optimizer = config.optimizer.name
    family = next((name for name in TIMES if name in optimizer), "")
    times, lr = TIMES.get(family, 1.0), config.optimizer.lr
    low, high = (edge * times for edge in rates.likely)
    if low <= lr <= high:
        return []
    usual, advised = " to ".join(f"{edge * times:.3g}" for edge in rates.usual), rates.advised * times
    what = "may hardly learn anything" if lr < low else "may destroy what the model knows, or not converge"
    return [
        f"optimizer.lr = {lr:g} is far from the {usual} that {rates.kind} usually has with {optimizer} ({why}): the "
        f"run {what}; set optimizer.lr: {advised:.3g}."
    ]


def _rates(config: Config) -> tuple[Rates | None, str]:
    """What kind of training it is, and the settings that say so; None where nothing is usual."""
    method = config.adapter.method
    if method != "none":
        return ADAPTERS.get(method), f"adapter.method = {method}"
    if config.model.init == "random":
        return SCRATCH, "model.init = random"
    if config.trainable.scope == "head" and not config.trainable.patterns:
        return HEAD, "trainable.scope = head"
    return FULL, "no adapter, model.init = pretrained"


def batch_warnings(config: Config, *, rows: int) -> list[str]:
    """A sentence where a global batch takes more than all training rows. `rows`: that are trained on."""
    size = config.batch.global_size
    if config.batch.unit != "samples" or not 0 < rows < size:
        return []
    return [
        f"batch.global_size = {size} is more than the {counted(rows, 'training row')}, so that an epoch is one "
        f"optimizer step; set batch.global_size: {max(1, rows // 10)} or more epochs."
    ]


def held_out_warnings(setting: str, *, rows: int, metric: str) -> list[str]:
    """A sentence where a part that is scored is too small to tell models apart. `metric`: that models are chosen by."""
    if not 0 < rows < FEW_HELD_OUT:
        return []
    if metric in RIGHT_OR_WRONG:
        told = _between(metric, wilson(LIKELY_SCORE, rows), author="Wilson")
    elif metric in CORRELATIONS:
        told = _between(metric, fisher(LIKELY_SCORE, rows, ranks=metric == "spearman"), author="Fisher")
    else:  # whatever it is a mean of, its error goes with 1 / sqrt(rows)
        wider = math.sqrt(SOME_HUNDRED / rows)
        told = f"the 95 % interval of {metric} is about {wider:.1f} times as wide as of {SOME_HUNDRED} rows"
    return [
        f"{setting}: {counted(rows, 'row')} tell{'s' * (rows == 1)} little: {told}; hold out {FEW_HELD_OUT} rows or "
        "more, better some hundred."
    ]


def _between(metric: str, interval: tuple[float, float], *, author: str) -> str:
    low, high = interval
    return (
        f"{metric} = {LIKELY_SCORE:g} among so many is, of all such rows, between {low:.2f} and {high:.2f} (95 % "
        f"interval of {author})"
    )


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The interval that holds the true share for 95 of 100 samples (E. B. Wilson 1927; Agresti and Coull 1998)."""
    middle = share + Z**2 / (2 * rows)
    half = Z * math.sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    scale = 1 + Z**2 / rows
    return (middle - half) / scale, (middle + half) / scale


def fisher(correlation: float, rows: int, *, ranks: bool) -> tuple[float, float]:
    """The interval of a correlation (R. A. Fisher 1921), of ranks that of Bonett and Wright (2000)."""
    if rows < 4:
        return -1.0, 1.0
    middle, variance = math.atanh(correlation), 1 + correlation**2 / 2 if ranks else 1.0
    half = Z * math.sqrt(variance / (rows - 3))
    return math.tanh(middle - half), math.tanh(middle + half)


def class_warnings(train: Mapping[str, int], held_out: Mapping[str, int] | None) -> list[str]:
    """Sentences on classes of one training row or none, and on those that no held-out row has.

    Both: rows of each class, 0 where there is none. held_out None = nothing is held out, or not all of it is known.
    """
    if len(train) < 2 or not any(train.values()):  # the last: of a task that keeps classes elsewhere
        return []
    found = []
    rare = [name for name, count in train.items() if count < 2]
    if rare:
        found.append(
            f"data.train: {_classes(rare)} one row or none, from which no class can be learned; add rows, or take the "
            "class out of the files."
        )
    absent = [name for name, count in train.items() if count > 1 and held_out is not None and not held_out.get(name)]
    if absent:
        found.append(
            f"data.eval: {_classes(absent)} no row, so that evaluation tells nothing of it; hold out more rows, or set "
            "data.stratify to the label column where they are a share of data.train."
        )
    return found


def _classes(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(map(repr, names[:NAMED]))}{more} {'has' if len(names) == 1 else 'have'}"


def evaluation_warnings(config: Config, *, rows: int, num_steps: int) -> list[str]:
    """A sentence where evaluation would take most of the time. `rows`: that are scored each time."""
    every, size = config.evaluation.every, config.batch.global_size
    if not every or not rows or config.batch.unit != "samples" or num_steps // every < FEW_EVALUATIONS:
        return []
    work = rows * FORWARD
    share = work / (work + every * size)
    if share < MUCH_EVALUATION:
        return []
    better = math.ceil(work / size * (1 - GOOD_SHARE) / GOOD_SHARE)
    return [
        f"evaluation.every = {every}: {num_steps // every} evaluations of {counted(rows, 'row')} take {share:.0%} of "
        "the run's time or more (a row that is scored costs a third of one that is trained on); set evaluation.every: "
        f"{min(better, num_steps)}."
    ]


def cut_warnings(setting: str, *, cut: int, rows: int) -> list[str]:
    """A sentence where most rows lose their ends."""
    if not rows or cut < MANY_CUT * rows:
        return []
    return [
        f"{setting}: {cut} of {counted(rows, 'row')} are cut at task.max_length and lose their ends; raise "
        "task.max_length as far as model and memory allow, or shorten the rows."
    ]
