"""One id for each special token: the model's config, its generation config and the tokenizer say the same."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ftscale.logs import log
from ftscale.models.lengths import POSITION_TABLES


def agree_on_padding(model: PreTrainedModel, tokenizer: Any) -> None:
    """The tokenizer's padding id for the model too, which finds the last token of a padded row by it.

    RoBERTa's kin count positions from the padding id, so that there the tokenizer takes the model's.
    """
    text, own = model.config.get_text_config(), tokenizer.pad_token_id
    if own is None:
        return
    if text.pad_token_id not in (None, own):
        if _counts_from_padding(model) and (token := tokenizer.convert_ids_to_tokens(text.pad_token_id)) is not None:
            log.info("padding with %r (%d), from which the model counts positions", token, text.pad_token_id)
            tokenizer.pad_token, own = token, text.pad_token_id
        else:
            log.info("pad_token_id: the model's config has %s, the tokenizer pads with %d", text.pad_token_id, own)
    for settings in (model.config, text, *([model.generation_config] if model.can_generate() else [])):
        settings.pad_token_id = own


def _counts_from_padding(model: PreTrainedModel) -> bool:
    return any(
        isinstance(module, nn.Embedding) and module.padding_idx is not None
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in POSITION_TABLES
    )
