"""When the evaluation rows are scored, and which of the scores is the best."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ftscale.base.errors import UserError, unknown_name
from ftscale.base.logs import log
from ftscale.config.schema import EvaluationConfig
from ftscale.data.order import GlobalOrder
from ftscale.tasks.base import Task
from ftscale.train.state import Progress


@dataclass
class Evaluations:
    """The evaluations of a run."""

    config: EvaluationConfig
    steps: frozenset[int]
    """Steps after which to evaluate (and, where the config does not say, to save)."""
    score: Callable[[int], dict[str, float]] | None
    """Scores the rows with the model as it stands, after so many steps; None = there are no rows. Collective.

    Raises Interrupted on all ranks when one is asked to stop meanwhile."""
    metric: str
    """Name of the metric that chooses the best checkpoint."""
    higher_is_better: bool

    def due(self, progress: Progress) -> bool:
        """Whether there is one now; what was done before a kill is not done again."""
        step = progress.step
        asked = step in self.steps or (step == 0 and self.config.before)
        return self.score is not None and asked and progress.evaluated != step

    def judge(self, metrics: dict[str, float], progress: Progress) -> bool:
        """Note the scores of this step in `progress`; returns whether they are the best so far.

        Raises UserError where the metric that chooses is not among them.
        """
        name = self.metric
        if name not in metrics and "/" not in name:  # a single class may be in no row and no prediction
            raise UserError(unknown_name("evaluation.metric", name, metrics))
        value, before = metrics.get(name, math.nan), progress.last_metrics.get(name, math.nan)
        first = progress.evaluated < 0
        progress.metric_moved |= not first and value != before and not (math.isnan(value) and math.isnan(before))
        progress.last_metrics, progress.evaluated = metrics, progress.step
        improved = self._is_better(metrics, value, progress)
        if improved:
            progress.best_metric, progress.best_step, progress.best_metrics = value, progress.step, metrics
            progress.bad_evaluations = 0
        else:
            progress.bad_evaluations += 1
        if not first and not progress.metric_moved:
            log.warning(
                "%s has been %s at every evaluation since the start: it tells no checkpoint from another, so that the "
                "lower loss chooses; name another in evaluation.metric if it stays so",
                name,
                f"{value:.4g}",
            )
        return improved

    def out_of_patience(self, progress: Progress) -> bool:
        """Whether too many evaluations in a row were no better."""
        return bool(self.config.patience) and progress.bad_evaluations >= self.config.patience

    def _is_better(self, metrics: dict[str, float], value: float, progress: Progress) -> bool:
        """Whether it is the best so far; of two with one value of the metric, the one of the lower loss."""
        best = progress.best_metric
        if not math.isfinite(value) or best is None:
            return math.isfinite(value)
        if value == best:
            return metrics["loss"] < progress.best_metrics["loss"]
        return value > best if self.higher_is_better else value < best


def evaluation_steps(every: int, order: GlobalOrder | None, *, num_steps: int) -> frozenset[int]:
    """After `every` so many steps, or with 0 at the end of each epoch; and after the last. A stream has no order."""
    if every:
        return frozenset([*range(every, num_steps + 1, every), num_steps])
    ends, step, epoch = [num_steps], 0, 0
    while order is not None and (step := step + order.size(epoch)) < num_steps:
        ends.append(step)
        epoch += 1
    return frozenset(ends)


def best_metric(config: EvaluationConfig, task: Task) -> tuple[str, bool]:
    """The metric that chooses the best checkpoint, and whether higher is better."""
    name = config.metric or task.best_metric
    known = name.split("/", 1)[0] not in task.evaluator().lower_is_better  # a metric of one class is as that of all
    if config.higher_is_better not in (None, known):
        log.warning(
            "evaluation.higher_is_better = %s, though %s is better %s: the worst checkpoint would be kept as the best",
            str(config.higher_is_better).lower(),
            name,
            "high" if known else "low",
        )
    return name, known if config.higher_is_better is None else config.higher_is_better
