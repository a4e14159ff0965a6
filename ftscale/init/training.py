"""Global batch, epochs and learning rate, as they are usual for the kind of training and the number of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ftscale.config.tasks import SETTINGS
from ftscale.init.draft import Draft
from ftscale.init.models import LORA_LR, Known

BATCHES = ((200, 8), (2000, 16))
"""Rows below which a global batch has so many."""
BATCH = 32


@dataclass(frozen=True)
class Length:
    """How long a kind of training is, in passes over the rows."""

    steps: int
    """Optimizer steps that are enough, where the rows are few."""
    fewest: int
    most: int


LENGTHS = {
    "embedding": Length(300, 1, 5),
    "reranking": Length(600, 1, 5),
    "multiple_choice": Length(600, 3, 10),
    "question_answering": Length(300, 2, 5),
    "text_classification": Length(600, 3, 20),
    "token_classification": Length(600, 3, 20),
    "image_classification": Length(1000, 3, 20),
    "seq2seq": Length(2000, 3, 10),
    "causal_lm": Length(300, 1, 3),
    "masked_lm": Length(1000, 3, 10),
}
"""Three passes are usual for encoders, more for few rows (Mosbach et al. 2020, arXiv:2006.04884), and one to three for
language models, which begin to recite after that."""
MANY_ROWS = 200_000
"""From which on one pass is enough for any task."""
RATES = {
    "embedding": ((50, 1e-4), (200, 5e-5), (math.inf, 2e-5)),
    "reranking": ((50, 1e-4), (200, 5e-5), (math.inf, 2e-5)),
    "multiple_choice": ((50, 1e-4), (200, 5e-5), (math.inf, 2e-5)),
    "question_answering": ((50, 2e-4), (200, 5e-5), (math.inf, 3e-5)),
    "text_classification": ((50, 1e-4), (200, 5e-5), (math.inf, 2e-5)),
    "token_classification": ((50, 2e-4), (200, 5e-5), (math.inf, 2e-5)),
    "image_classification": ((10, 1e-3), (50, 1e-4), (math.inf, 5e-5)),
    "seq2seq": ((100, 1e-4), (math.inf, 3e-5)),
    "masked_lm": ((50, 3e-4), (200, 1e-4), (math.inf, 5e-5)),
    "causal_lm": ((50, 1e-3), (200, 1e-4), (1000, 2e-5), (math.inf, 1e-5)),
}
"""Millions of parameters below which a rate is usual, for models that are not of the list."""
T5_LR = 3e-4


def put_batch(draft: Draft, task: str, samples: int, *, is_whole: bool) -> None:
    """Set the global batch, and the passes over so many training samples."""
    size = next((size for rows, size in BATCHES if samples < rows), BATCH)
    draft.put("batch.global_size", size, f"samples a step; {BATCH} is usual, fewer below 2000 and below 200 rows")
    length = LENGTHS[task]
    epochs = min(length.most, max(length.fewest, math.ceil(length.steps * size / max(1, samples))))
    if samples > MANY_ROWS:
        epochs = 1
    steps = epochs * math.ceil(samples / size)
    first, last = ("", "") if is_whole else ("more than ", " or more")
    why = (
        f"passes over {first}{samples} samples, {steps} steps{last}"
        f"; {length.fewest} to {length.most} are usual, more for few rows; the best evaluation is kept"
    )
    draft.put("train.epochs", epochs, why)


def put_rates(draft: Draft, task: str, known: Known | None, *, adapts: bool, millions: float | None) -> None:
    """Set the peak learning rate and its course."""
    if adapts:
        draft.put("optimizer.lr", LORA_LR, "usual for LoRA, ten times the rate of all weights")
    elif known is not None:
        draft.put("optimizer.lr", known.lr, "usual for all weights of this model")
    elif task == "seq2seq" and "t5" in draft.value("model.name").lower():
        draft.put("optimizer.lr", T5_LR, "usual for T5 with AdamW")
    elif millions is None:
        draft.put("optimizer.lr", RATES[task][-1][1], "usual for large models of the task; small ones take more")
    else:
        rate = next(rate for most, rate in RATES[task] if millions < most)
        draft.put("optimizer.lr", rate, f"usual for all weights of a model of {_count(millions)} parameters")
    if known is not None and known.head_lr is not None and not adapts and "brings_head" in SETTINGS[task].can:
        draft.put("optimizer.head_lr", known.head_lr, "a new head learns faster")
    if task == "causal_lm":
        draft.put("schedule.name", "cosine", "usual for language models")
    draft.put("schedule.warmup_ratio", 0.06, "of the steps, for the first and largest changes")


def _count(millions: float) -> str:
    return f"{millions:.0f} M" if millions >= 10 else f"{millions:.1f} M"
