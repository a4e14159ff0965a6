"""Text as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ftscale.base.logs import log
from ftscale.config.schema import ModelConfig
from ftscale.modalities.base import NOT_LEARNED
from ftscale.modalities.collate import Layout
from ftscale.models.agree import agree_on_padding
from ftscale.models.choices import as_single_choices
from ftscale.models.load import check_tokenizer, fit_vocabulary, load_processor

PROBE_LENGTH, PROBE_TARGET_LENGTH = 16, 8


class Text:
    """Rows of tokens from a tokenizer. A tokenizer without a pad token pads with its end token."""

    unit = "token"
    in_tokens = True
    layouts: tuple[Layout, ...] = ("flat", "padded")
    learns: frozenset[str] = frozenset()

    def load_processor(self, config: ModelConfig, *, learned: Mapping[str, Any] = NOT_LEARNED) -> Any:
        """The tokenizer of `config.processor`, or else of `config.name`. Raises UserError where there is none."""
        tokenizer = load_processor(config, build=_build, what="tokenizer")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
            log.info("the tokenizer has no pad token: padding with its end token %r", tokenizer.eos_token)
        return tokenizer

    def is_learned(self, processor: Any) -> bool:
        """No: it comes with the model."""
        return False

    def fit_model(self, model: Any, processor: Any, *, seed: int) -> None:
        """As many embeddings as the tokenizer has tokens, and its padding id."""
        fit_vocabulary(model, processor, seed=seed)
        agree_on_padding(model, processor)

    def probe(self, model_config: Any) -> dict[str, Tensor]:
        """Token ids (2, 16) int64, all of them attended to; for an encoder-decoder also (2, 8) of the decoder."""
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model_config.get_text_config().vocab_size, (2, PROBE_LENGTH), generator=random)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if model_config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids[:, :PROBE_TARGET_LENGTH]
        return inputs

    def show_input(self, sample: Any, processor: Any) -> str:
        """The tokens as text, special ones too."""
        return processor.decode(sample.inputs["input_ids"])


class TextChoices(Text):
    """Several texts a sample, for a model that scores each."""

    def probe(self, model_config: Any) -> dict[str, Tensor]:
        """As of texts, each the one choice of its row: (2, 1, 16)."""
        return as_single_choices(super().probe(model_config))


def _build(place: str, options: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    check_tokenizer(tokenizer)
    return tokenizer
