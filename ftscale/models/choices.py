"""Models of multiple choice, whose token inputs have one dimension more: (samples, choices, tokens)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

TOKEN_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
"""Not `position_ids`, which DistilBERT's class takes as they are, and the others in either form."""


def takes_choices(model: PreTrainedModel) -> bool:
    """Whether the model is of a transformers class for multiple choice."""
    return type(model).__name__.endswith("ForMultipleChoice")


def as_single_choices(inputs: dict[str, Any]) -> dict[str, Any]:
    """(sequences, tokens) as (sequences, 1, tokens), for which such a model gives logits of (sequences, 1).

    A row of flat sequences, (1, tokens), becomes (1, 1, tokens), and its logits are by sequence too. With more than one
    choice the model itself would group the logits, which needs equally many for each sample, and padded rows.
    """
    return {name: value.unsqueeze(1) if name in TOKEN_INPUTS else value for name, value in inputs.items()}
