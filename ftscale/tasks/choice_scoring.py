"""How a model tells the choices of a question apart: by a head over each, or by how likely it finds each as a text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ftscale.data.parts import special_frame, tokenize_parts
from ftscale.modalities.base import Modality
from ftscale.modalities.collate import IGNORED, Layout, collate_tokens, pad_id
from ftscale.modalities.encode import Encoded, encode, end_token
from ftscale.modalities.text import Text, TextChoices
from ftscale.models.choices import as_single_choices
from ftscale.models.lm_head import lm_log_probs
from ftscale.tasks.batch import Batch

Pair = tuple[str, str]
"""What stands before a choice (context and question), and the choice; or context, and question with choice."""
NO_CHOICE = torch.finfo(torch.float32).min
"""The score where there is no choice: its probability is 0, and it gets no gradient."""
SCALES = "scales"
"""In a batch's `extra`: (samples, most choices) float32, what the sum over each choice is multiplied by."""


class Scoring(Protocol):
    """What `task.scoring` decides. The members with the names of a task's are that member of the task."""

    auto_class: ClassVar[str]
    peft_type: ClassVar[str | None]
    pools: ClassVar[bool]
    brings_head: ClassVar[bool]
    modality: ClassVar[Modality]

    def pairs(self, context: str, question: str, choices: Sequence[str]) -> list[Pair]:
        """The two texts of each sequence; `context` may be empty. Of a too long sequence the first is cut."""

    def encode(self, pairs: Sequence[Pair], processor: Any) -> list[Encoded]:
        """The pairs as whole sequences."""

    def cut(self, pairs: Sequence[Pair], whole: Sequence[Encoded], processor: Any, *, limit: int) -> list[Encoded]:
        """The same sequences, of at most so many tokens; none where that leaves no token of some first text."""

    def collate(
        self, sequences: Sequence[dict[str, list[int]]], processor: Any, *, layout: Layout
    ) -> tuple[dict[str, Any], Tensor | None]:
        """The model's inputs, and the batch's labels where they are tokens."""

    def scales(self, choices: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """What `scores` needs in the batch's `extra`, told from the texts of each sample's choices."""

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """A number for each choice, the higher the likelier: (samples, most choices) float32, with its graph.

        `NO_CHOICE` where a sample has fewer choices than another.
        """


class ByHead:
    """`head`: an encoder reads each sequence, and a head of its own makes a number of it."""

    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    peft_type: ClassVar[str | None] = None  # peft has no name for it; its plain model passes all inputs on
    pools: ClassVar[bool] = True
    brings_head: ClassVar[bool] = True
    modality: ClassVar[Modality] = TextChoices()

    def pairs(self, context: str, question: str, choices: Sequence[str]) -> list[Pair]:
        """Context, then question and choice; without a context question, then choice."""
        if not context:
            return [(question, choice) for choice in choices]
        return [(context, f"{question} {choice}".strip()) for choice in choices]

    def encode(self, pairs: Sequence[Pair], processor: Any, *, limit: int = sys.maxsize) -> list[Encoded]:
        firsts, seconds = zip(*pairs, strict=True)
        return encode(processor, firsts, pairs=seconds, limit=limit, cut="first")

    def cut(self, pairs: Sequence[Pair], whole: Sequence[Encoded], processor: Any, *, limit: int) -> list[Encoded]:
        """The end of the first text goes."""
        seconds = processor([second for _, second in pairs], add_special_tokens=False, verbose=False)["input_ids"]
        room = limit - processor.num_special_tokens_to_add(pair=True) - max(map(len, seconds))
        return self.encode(pairs, processor, limit=limit) if room > 0 else []

    def collate(
        self, sequences: Sequence[dict[str, list[int]]], processor: Any, *, layout: Layout
    ) -> tuple[dict[str, Any], Tensor | None]:
        fill = {"input_ids": pad_id(processor), "token_type_ids": 0}
        return as_single_choices(collate_tokens(sequences, fill=fill, layout=layout)), None

    def scales(self, choices: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        return {}

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        return _by_sample(model(**batch.inputs).logits[:, 0].float(), batch)


@dataclass(frozen=True)
class ByLikelihood:
    """`likelihood`: a decoder goes on from the question, and a choice scores the log-probability of its tokens.

    What EleutherAI's lm-evaluation-harness calls `acc`, and with `by_character` its `acc_norm`.
    """

    by_character: bool = False
    """Whether the sum is divided by the characters of the choice, so that long ones are not at a disadvantage."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_type: ClassVar[str | None] = "CAUSAL_LM"
    pools: ClassVar[bool] = False
    brings_head: ClassVar[bool] = False
    modality: ClassVar[Modality] = Text()

    def pairs(self, context: str, question: str, choices: Sequence[str]) -> list[Pair]:
        """Context and question, then the choice behind a blank."""
        before = f"{context} {question}".strip()
        return [(before, f" {choice}") for choice in choices]

    def encode(self, pairs: Sequence[Pair], processor: Any) -> list[Encoded]:
        """Each token of the choice stands as a label one place earlier, where it is predicted."""
        start, _ = special_frame(processor)
        return [_going_on(start, *pair, processor) for pair in pairs]

    def cut(self, pairs: Sequence[Pair], whole: Sequence[Encoded], processor: Any, *, limit: int) -> list[Encoded]:
        """The beginning of the first text goes: a model goes on from its end."""
        start = len(special_frame(processor)[0])
        room = limit - start - max(sum(label != IGNORED for label in item.inputs["labels"]) for item in whole)
        return [_shortened(item, start, limit) for item in whole] if room > 0 else []

    def collate(
        self, sequences: Sequence[dict[str, list[int]]], processor: Any, *, layout: Layout
    ) -> tuple[dict[str, Any], Tensor | None]:
        inputs = collate_tokens(sequences, fill={"input_ids": pad_id(processor), "labels": IGNORED}, layout=layout)
        return inputs, inputs.pop("labels")

    def scales(self, choices: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        if not self.by_character:
            return {}
        scales = [torch.tensor([1 / len(text) for text in texts]) for texts in choices]
        return {SCALES: pad_sequence(scales, batch_first=True, padding_value=1.0)}

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        values = lm_log_probs(model, batch.inputs, batch.labels)
        owners = batch.owners(batch.labels != IGNORED)
        sums = _by_sample(values.new_zeros(sum(batch.sequences)).index_add(0, owners, values), batch)
        return sums * batch.extra[SCALES] if self.by_character else sums


SCORINGS: dict[str, Scoring] = {
    "head": ByHead(),
    "likelihood": ByLikelihood(),
    "likelihood_per_character": ByLikelihood(by_character=True),
}
"""By `task.scoring`."""


def _by_sample(scores: Tensor, batch: Batch) -> Tensor:
    """(sequences,) as (samples, most choices)."""
    return pad_sequence(scores.split(batch.sequences), batch_first=True, padding_value=NO_CHOICE)


def _going_on(start: list[int], before: str, choice: str, processor: Any) -> Encoded:
    """A sequence with its labels. `start`: the special tokens before every text."""
    start = start or ([] if before else [end_token(processor)])  # the first token of the choice is predicted, too
    ids, _, (given,) = tokenize_parts(before + choice, [len(before)], processor)
    ids, given = start + ids, len(start) + given
    labels = [IGNORED] * (given - 1) + ids[given:] + [IGNORED]
    return Encoded({"input_ids": ids, "labels": labels}, len(ids), [])


def _shortened(item: Encoded, start: int, limit: int) -> Encoded:
    """Of at most `limit` tokens, among them the first `start`."""
    inputs = {name: [*ids[:start], *ids[max(start, len(ids) - limit + start) :]] for name, ids in item.inputs.items()}
    return Encoded(inputs, item.length, [])
