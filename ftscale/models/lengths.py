"""How many tokens a model takes, as its config and its tables of positions say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ftscale.models.without_weights import model_without_weights

POSITION_TABLES = ("position_embeddings", "char_position_embeddings", "embed_positions", "positions_embed", "wpe")
"""Last names of the modules that hold one vector a position, in transformers' models."""


@dataclass(frozen=True)
class Lengths:
    """Most tokens of an input and, of an encoder-decoder, of the text that it writes; None = no limit."""

    source: int | None
    target: int | None
    by_table: bool
    """A table of positions sets the limit: a token beyond it is an error, not only out of the trained range."""


def model_lengths(
    model_config: PreTrainedConfig, *, auto_class: str, decodes: bool = False, trust_remote_code: bool = False
) -> Lengths:
    """The limits of a model, told without its weights: the smaller of its tables of positions and of its config.

    RoBERTa's kin count positions from `pad_token_id + 1`, BART's and OPT's have two rows more than they use; a sliding
    window is no limit, nor are relative positions (T5, DeBERTa-v3, XLNet) and ALiBi (BLOOM, Falcon). `decodes`: a
    decoder reads other tokens than the encoder, and has a limit of its own.
    """
    config = model_config.get_text_config()
    model = model_without_weights(model_config, auto_class=auto_class, trust_remote_code=trust_remote_code)
    tables = {} if model is None else position_tables(model)
    said = _config_limit(config, has_table=bool(tables))
    target = [rows for name, rows in tables.items() if decodes and "decoder" in name]
    source = [rows for name, rows in tables.items() if not (decodes and "decoder" in name)]
    return Lengths(_smallest([*source, said]), _smallest([*target, said]) if decodes else None, bool(tables))


def position_tables(model: nn.Module) -> dict[str, int]:
    """Tables of positions by their names, each with the number of positions that it has for tokens."""
    return {
        name: _positions(module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITION_TABLES
    }


def _positions(table: nn.Embedding) -> int:
    offset = vars(table).get("offset")
    if offset is None:  # RoBERTa and its kin count from padding_idx + 1
        offset = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - offset


def _config_limit(config: PreTrainedConfig, *, has_table: bool) -> int | None:
    """The number of positions that the config writes, times what a scaled rotation makes of it."""
    known: dict[str, Any] = config.to_dict()
    unlimited = known.get("alibi") or (known.get("relative_attention") and not has_table)
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    trained = known.get(name, known.get("max_seq_len"))
    if unlimited or not isinstance(trained, int) or trained <= 0:
        return None
    rotations = known.get("rope_parameters") or {}
    by_layer = [part for part in rotations.values() if isinstance(part, dict)] or [rotations]
    return max(trained, *(_scaled(rotation, trained) for rotation in by_layer))


def _scaled(rotation: dict[str, Any], trained: int) -> int:
    """transformers, modeling_rope_utils: a factor of x lets the model handle x times the original length."""
    if rotation.get("rope_type", "default") == "default":
        return trained
    original = rotation.get("original_max_position_embeddings") or trained
    return int(original * (rotation.get("factor") or 1.0))


def _smallest(limits: list[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
