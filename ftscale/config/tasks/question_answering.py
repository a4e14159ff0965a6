"""Settings of extractive question answering."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from ftscale.config.tasks.base import Capability, Columns, TextSettings


class QuestionAnsweringSettings(TextSettings):
    """The piece of a `context` that answers a `question`: `answers`, or `answer` and perhaps `answer_start`."""

    columns: ClassVar[Columns] = (
        ("question", "context", "answers"),
        ("question", "context", "answer", "answer_start"),
        ("question", "context", "answer"),
    )
    label_columns: ClassVar[frozenset[str]] = frozenset({"answers", "answer", "answer_start"})
    optional_columns: ClassVar[frozenset[str]] = label_columns
    text_column: ClassVar[str | None] = None
    learned: ClassVar[dict[str, Any]] = {"no_answer": None}
    can: ClassVar[frozenset[Capability]] = frozenset({"flat_rows", "brings_head"})
    name: Literal["question_answering"] = "question_answering"
    """The task."""
    stride: NonNegativeInt = 128
    """Tokens of a context that a window has in common with the one before; a context that is longer than a sample is
    read in several windows."""
    max_question: PositiveInt = 64
    """Longest question in tokens; `too_long` says what happens to a longer one."""
    max_answer: PositiveInt = 30
    """Longest answer that is given, in tokens."""
    n_best: PositiveInt = 20
    """Starts and ends of each window that are combined to answers, the likeliest ones."""
    no_answer: bool | None = None
    """Whether a question may have no answer in its context; null = where a training row has none."""
    no_answer_threshold: float | None = None
    """With `no_answer`: no answer is given where its score is greater than the best answer's by more than this (scores
    are sums of two logits); null = 0 in training, and then the `best_f1_threshold` of the chosen evaluation."""
    language: Literal["en", "ar", "de", "es", "hi", "vi", "zh", "other"] = "en"
    """How answers are compared: en = as SQuAD's script does; the others as MLQA's, without the language's own articles,
    and with each Chinese character as a word."""
