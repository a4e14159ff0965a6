"""What is better of each metric that a task gives: the higher value or the lower one."""

from __future__ import annotations

HIGHER_IS_BETTER = {
    "loss": False,
    "perplexity": False,
    "mse": False,
    "mae": False,
    "accuracy": True,
    "token_accuracy": True,
    "top5_accuracy": True,
    "precision": True,
    "recall": True,
    "f1": True,
    "precision_macro": True,
    "recall_macro": True,
    "f1_macro": True,
    "precision_micro": True,
    "recall_micro": True,
    "f1_micro": True,
    "mcc": True,
    "pearson": True,
    "spearman": True,
    "exact_match": True,
    "rouge1": True,
    "rouge2": True,
    "rougeL": True,
    "bleu": True,
    "chrf": True,
}
"""By the whole name of a metric, or by what stands before the `/` of one that is of a single class."""


def higher_is_better(metric: str) -> bool | None:
    """Whether the higher value of a metric is the better one; None for a name that no task gives."""
    return HIGHER_IS_BETTER.get(metric.split("/", 1)[0])
