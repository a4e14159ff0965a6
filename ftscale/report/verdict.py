"""What a run comes to in a few sentences: whether it learned, where it stopped, whether it over-fits, what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ftscale.base.errors import counted
from ftscale.report.facts import Run, number
from ftscale.report.rows import Scored

ENDS = {
    "completed": "It was completed",
    "stopped_early": "It was stopped early, since evaluations got no better,",
    "preempted": "It was asked to stop and can be gone on with",
    "failed": "It failed",
}
OVERFITTED = 0.05
"""So much of its least value may the held-out loss rise before it is told."""
SURE = 0.1
"""Expected calibration error from which it is told."""
HAPPENED = {
    "bad_batch": "step with a bad loss or gradient",
    "rewound": "return to earlier weights",
    "preempted": "stop by request",
    "failed": "error",
}


def sentences(run: Run, scored: dict[str, Scored]) -> list[str]:
    """The most important first. `scored`: what is known of rows, by the part of the data."""
    found = [*_end(run), *_result(run), *_learned(run), *_overfitted(run)]
    for part, rows in scored.items():
        found += _about_rows(part, rows)
    return [*found, *_happened(run)]


def _end(run: Run) -> Iterator[str]:
    steps, result = len(run.steps), run.result
    if not result:
        wanted = run.about.get("num_steps")
        of = f" of {wanted:,}" if isinstance(wanted, int) else ""
        yield f"It has no end yet: {steps:,}{of} optimizer steps are done."
        return
    status = str(result.get("status"))
    minutes = (number(result.get("duration_s")) or 0) / 60
    done = counted(int(result.get("steps") or 0), "optimizer step")
    yield f"{ENDS.get(status, f'It ended as {status}')} after {done} in {_time(minutes)}."
    errors = [str(event["error"]) for event in run.events if event.get("event") == "failed" and event.get("error")]
    if status == "failed" and errors:
        yield f"The error: {errors[-1]}"


def _result(run: Run) -> Iterator[str]:
    metrics, intervals = run.result.get("metrics") or {}, run.result.get("intervals") or {}
    name = f"test/{run.metric}" if f"test/{run.metric}" in metrics else run.metric
    value = number(metrics.get(name))
    if value is None:
        return
    rows = "test rows" if name.startswith("test/") else "held-out rows"
    interval = intervals.get(name)
    between = f" (95 of 100 samples of such rows give {interval[0]:.4g} to {interval[1]:.4g})" if interval else ""
    weights = f" with the weights of step {run.best_step:,}" if run.best_step else ""
    yield f"On {rows} {name.removeprefix('test/')} is {value:.4g}{between}{weights}."


def _learned(run: Run) -> Iterator[str]:
    losses = [value for line in run.steps if (value := number(line.get("loss"))) is not None]
    if len(losses) < 10:
        return
    part = max(len(losses) // 10, 1)
    first, last = float(np.mean(losses[:part])), float(np.mean(losses[-part:]))
    noise = float(np.std(losses[-part:])) / part**0.5 if part > 1 else 0.0
    fell = f"from {first:.4g} in the first tenth of the steps to {last:.4g} in the last"
    if last < first - 2 * noise:
        yield f"The training loss fell {fell}."
    else:
        yield f"The training loss did not fall: {fell}. Look at the learning rate, and at what is trained."


def _overfitted(run: Run) -> Iterator[str]:
    scored = [(line["step"], value) for line in run.evaluations if (value := number(line.get("loss"))) is not None]
    if len(scored) < 2:
        return
    best_step, best = min(scored, key=lambda pair: pair[1])
    last_step, last = scored[-1]
    if last > best * (1 + OVERFITTED) and best > 0:
        yield (
            f"It over-fits: the held-out loss was least at step {best_step:,} ({best:.4g}) and {last:.4g} at step "
            f"{last_step:,}. Fewer epochs, a lower rate or more data would help."
        )
    elif best_step == last_step:
        yield "The held-out loss was still falling at the last evaluation: more steps may help."


def _about_rows(part: str, rows: Scored) -> Iterator[str]:
    facts, name = rows.facts, "test rows" if part == "test" else "held-out rows"
    if "accuracy" in facts and facts["accuracy"] <= facts["majority"]:
        yield (
            f"On {name} it is right in {facts['accuracy']:.1%}, which is no more than always saying the most frequent "
            f"class would be ({facts['majority']:.1%})."
        )
    if facts.get("calibration_error", 0) > SURE:
        yield (
            f"On {name} the chances that it gives are off by {facts['calibration_error']:.2f} on average: do not take "
            "them for probabilities."
        )


def _happened(run: Run) -> Iterator[str]:
    counts = Counter(str(event.get("event")) for event in run.events)
    told = [f"{word} ({counts[name]})" for name, word in HAPPENED.items() if counts[name]]
    if told:
        yield f"On the way, and how often: {', '.join(told)}. metrics.jsonl has them."
    if run.history:
        yield f"Settings were changed {counted(len(run.history), 'time')} when it was resumed; see below."


def _time(minutes: float) -> str:
    if minutes < 1:
        return f"{minutes * 60:.0f} s"
    return f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
