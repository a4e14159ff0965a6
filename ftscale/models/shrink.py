"""Fields of a model's config that make it smaller: fewer blocks, and narrower ones."""

from __future__ import annotations

from typing import Any

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers")
"""What configs call the number of blocks; the decoder's, where it has its own, stands in DECODER_DEPTHS."""
DECODER_DEPTHS = ("num_decoder_layers", "decoder_layers")
HEADS = (
    "num_attention_heads",
    "n_head",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "num_key_value_heads",
)
WIDTHS = (
    "hidden_size",
    "n_embd",
    "d_model",
    "intermediate_size",
    "n_inner",
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "moe_intermediate_size",
)


def depth_fields(known: dict[str, Any]) -> list[str]:
    """Names of the fields that hold the number of blocks; the first is the encoder's, or the only one."""
    first = next((name for name in DEPTHS if isinstance(known.get(name), int)), None)
    if first is None:
        return []
    return [first, *(name for name in DECODER_DEPTHS if known.get(name) == known[first])]


def shallow(known: dict[str, Any], depth: int) -> dict[str, Any]:
    """The fields for `depth` blocks of the same kinds. `known`: the config as a dict."""
    changed: dict[str, Any] = dict.fromkeys(depth_fields(known), depth)
    if known.get("layer_types"):
        changed["layer_types"] = list(known["layer_types"])[:depth]
    return changed


def narrow(known: dict[str, Any], divisor: int) -> dict[str, Any]:
    """The fields for blocks narrower by a divisor of all widths and heads; key and value heads are at least one."""
    found = {name: known[name] for name in (*HEADS, *WIDTHS) if isinstance(known.get(name), int)}
    if any(value % divisor for name, value in found.items() if name != "num_key_value_heads"):
        return {}
    return {name: max(1, value // divisor) for name, value in found.items()}
