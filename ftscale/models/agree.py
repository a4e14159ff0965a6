"""One id for each special token: the model's config, its generation config and the tokenizer say the same."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from ftscale.base.errors import UserError
from ftscale.base.logs import log
from ftscale.models.languages import target_code
from ftscale.models.lengths import POSITION_TABLES

STARTS_WITH_THE_END = ("mbart",)
"""Models that are trained with the last token of the text before its first."""


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


def agree_on_start(model: PreTrainedModel, tokenizer: Any) -> None:
    """Have a decoder start with the same token, and write the same one first, in training and in generation.

    A tokenizer that writes the code of the target's language first (NLLB, M2M100, mBART-50) has it forced; one that
    writes it last (mBART) starts the decoder with it. Raises UserError where nothing says how to start.
    """
    config, generation = model.config, model.generation_config
    code, target = target_code(tokenizer), tokenizer(text_target="a")["input_ids"]
    if code is not None and target[0] == code:
        generation.forced_bos_token_id = code
    if config.model_type in STARTS_WITH_THE_END or (code is not None and target[-1] == code):
        config.decoder_start_token_id = target[-1]
    start = start_token(config, generation)
    if start is None:
        raise UserError(no_start(tokenizer))
    config.decoder_start_token_id = generation.decoder_start_token_id = start


def start_token(config: PreTrainedConfig, generation: GenerationConfig) -> int | None:
    """The token that a decoder starts with; the config's comes first, since training goes by it."""
    own = config.to_dict().get("decoder_start_token_id")
    return generation.decoder_start_token_id if own is None else own


def no_start(tokenizer: Any) -> str:
    """The sentence for an encoder-decoder of which nothing says how its decoder starts."""
    return (
        "model.name: nothing says with which token its decoder starts (decoder_start_token_id in config.json); set "
        f"model.overrides: {{decoder_start_token_id: {tokenizer.pad_token_id}}}, the padding token, as T5 does, or "
        "another."
    )


def _counts_from_padding(model: PreTrainedModel) -> bool:
    return any(
        isinstance(module, nn.Embedding) and module.padding_idx is not None
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in POSITION_TABLES
    )
