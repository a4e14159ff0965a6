"""A model as its config alone makes it, on torch's meta device: modules and shapes, no weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

NO_MODEL = (AttributeError, ImportError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError)
"""What the making of a model raises that its config does not suffice for: loading it will say so."""


def model_without_weights(model_config: PreTrainedConfig, *, auto_class: str, trust_remote_code: bool) -> Any | None:
    """The model of an Auto class for this config; None where its config does not suffice."""
    try:
        with torch.device("meta"):
            return getattr(transformers, auto_class).from_config(model_config, trust_remote_code=trust_remote_code)
    except NO_MODEL:
        return None
