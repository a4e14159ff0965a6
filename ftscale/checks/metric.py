"""Whether the metric that is to choose the best checkpoint can move at all on the evaluation rows."""

from __future__ import annotations

import re
from collections.abc import Callable

from ftscale.checks.sample import DataSample, Part
from ftscale.tasks.base import Task

BLEU_WORDS = 4
"""BLEU multiplies the precisions of runs of one to four words (Papineni 2002): it is 0.0 where no text has four."""
FEW = 0.5  # share of rows that may be too short before it is worth a word


def metric_warnings(sample: DataSample) -> list[str]:
    """A sentence where the metric stays as it is whatever the model learns; none where there is no evaluation."""
    config = sample.config
    if not (config.data.eval or config.data.eval_ratio):
        return []
    part = sample.evaluation or sample.train
    setting = "data.eval" if sample.evaluation else "data.train"
    metric = config.evaluation.metric or sample.task.best_metric
    if problem := _short_texts(metric, _targets(sample.task, part)) or _one_label(metric, part):
        return [
            f"evaluation.metric = {metric}: {problem} in {setting}, so that it may tell no checkpoint from another "
            "(the lower loss chooses then); set evaluation.metric: loss, or another that moves."
        ]
    return []


def _targets(task: Task, part: Part) -> list[str]:
    """The texts that generated ones are compared with; empty where the task generates none."""
    return [text for item in part.kept if (text := task.reference(item))]


def _short_texts(metric: str, targets: list[str]) -> str | None:
    count, least = _counters().get(metric, (None, 0))
    if count is None or not targets:
        return None
    short = sum(count(text) < least for text in targets)
    if short <= FEW * len(targets):
        return None
    return f"{short} of {len(targets)} targets have fewer than {least} words as the metric counts them"


def _counters() -> dict[str, tuple[Callable[[str], int], int]]:
    """Return, for each metric of texts, how it counts words and the fewest that it needs."""
    from sacrebleu.metrics import BLEU

    split = BLEU().tokenizer

    def by_bleu(text: str) -> int:
        return len(split(text).split())

    def by_rouge(text: str) -> int:  # rouge-score's words are of a-z and 0-9 alone
        return len(re.findall("[a-z0-9]+", text.lower()))

    return {
        "bleu": (by_bleu, BLEU_WORDS),
        "rouge1": (by_rouge, 1),
        "rouge2": (by_rouge, 2),
        "rougeL": (by_rouge, 1),
    }


def _one_label(metric: str, part: Part) -> str | None:
    labels = [item.label for item in part.kept if isinstance(item.label, (int, float))]
    if metric in ("pearson", "spearman", "mcc") and labels and len(set(labels)) == 1:
        return "all labels are one and the same"
    return None
