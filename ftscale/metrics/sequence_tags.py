"""Entity precision, recall and F1 of tag sequences, as seqeval counts them in strict IOB2."""

from __future__ import annotations

from collections.abc import Sequence

import evaluate
from datasets import Sequence as ListOf
from datasets import Value

from ftscale.metrics.memory import MemoryMetric, describe

SUMMARIES = ("micro avg", "macro avg", "weighted avg")


class EntityScores(MemoryMetric):
    """Scores of entities: an entity counts only where its type, first word and last word are all right.

    `predictions`, `references`: for each row its IOB2 tags, one a word. Gives `precision`, `recall`, `f1` over all
    entities, `precision/<type>`, `recall/<type>`, `f1/<type>`, and `token_accuracy`, the share of words with the right
    tag. Predicted tags that are no IOB2 (an I- without its B-) make no entity. 0.0 where there is nothing to divide.
    """

    def _info(self) -> evaluate.MetricInfo:
        rows = ListOf(Value("string"))
        return describe("Scores of entities.", predictions=rows, references=rows)

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        report = _report(predictions, references)
        scores = _named(report["micro avg"], suffix="")
        for entity_type in sorted(set(report) - set(SUMMARIES)):
            scores.update(_named(report[entity_type], suffix=f"/{entity_type}"))
        pairs = [
            pair
            for guess, truth in zip(predictions, references, strict=True)
            for pair in zip(guess, truth, strict=True)
        ]
        scores["token_accuracy"] = sum(guess == truth for guess, truth in pairs) / len(pairs) if pairs else 0.0
        return scores


def _report(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    if all(tag == "O" for tags in (*predictions, *references) for tag in tags):  # seqeval: mean of an empty slice
        return {"micro avg": {"precision": 0.0, "recall": 0.0, "f1-score": 0.0}}
    return classification_report(
        list(references), list(predictions), mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )


def _named(row: dict[str, float], *, suffix: str) -> dict[str, float]:
    return {
        f"precision{suffix}": float(row["precision"]),
        f"recall{suffix}": float(row["recall"]),
        f"f1{suffix}": float(row["f1-score"]),
    }
