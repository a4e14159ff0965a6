"""How much a model takes: held against the model itself, which is asked for one token more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from ftscale.models.lengths import Lengths, model_lengths

CLASSES, CAUSAL, SEQ2SEQ = (f"AutoModel{tail}" for tail in ("ForSequenceClassification", "ForCausalLM", "ForSeq2SeqLM"))
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
OPT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 32}
BART = {
    "d_model": 32,
    "vocab_size": 50,
    **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in (("layers", 1), ("ffn_dim", 32))},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}

HARD: dict[str, tuple[str, dict[str, Any]]] = {  # one token more is an error
    "Bert": (CLASSES, {"max_position_embeddings": 24, **BERT}),
    "Roberta": (CLASSES, {"max_position_embeddings": 26, **BERT}),
    "MPNet": (CLASSES, {"max_position_embeddings": 26, **BERT}),
    "Electra": (CLASSES, {"max_position_embeddings": 24, **BERT}),
    "Deberta": (CLASSES, {"max_position_embeddings": 24, **BERT}),
    "DistilBert": (CLASSES, {"max_position_embeddings": 24, "dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 50}),
    "GPT2": (CAUSAL, {"n_positions": 24, **GPT}),
    "OPT": (CAUSAL, {"max_position_embeddings": 24, "vocab_size": 50, **OPT}),
    "Bart": (SEQ2SEQ, {"max_position_embeddings": 24, **BART}),
    "Marian": (SEQ2SEQ, {"max_position_embeddings": 24, **BART}),
}


@pytest.mark.parametrize("kind", HARD)
def test_the_limit_is_the_last_length_that_works(kind: str):
    auto, fields = HARD[kind]
    config = getattr(transformers, f"{kind}Config")(**fields)
    assert model_lengths(config, auto_class=auto).source == 24
    assert model_lengths(config, auto_class=auto).by_table
    model = getattr(transformers, auto).from_config(config).eval()
    start = {"decoder_input_ids": torch.full((1, 1), 2)} if auto == SEQ2SEQ else {}
    model(input_ids=torch.full((1, 24), 7), **start)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 25), 7), **start)


def rotary(**parameters: Any) -> dict[str, Any]:
    return {"max_position_embeddings": 24, **BERT, "rope_parameters": {"rope_theta": 1e4, **parameters}}


@pytest.mark.parametrize(
    ("kind", "fields", "limit"),
    [
        ("Llama", rotary(rope_type="default"), 24),
        ("Llama", rotary(rope_type="linear", factor=2.0), 48),
        ("Qwen2", rotary(rope_type="yarn", factor=4.0, original_max_position_embeddings=24), 96),
        ("Qwen2", rotary(rope_type="yarn", factor=4.0, original_max_position_embeddings=6), 24),
        ("Mistral", {**rotary(rope_type="default"), "sliding_window": 8}, 24),
        ("Gemma3Text", {"max_position_embeddings": 24, "sliding_window": 8, "head_dim": 16, **BERT}, 24),
        ("Bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, None),
        ("Falcon", {"alibi": True, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, None),
        ("Falcon", {"max_position_embeddings": 24, "hidden_size": 32, "num_attention_heads": 2}, 24),
    ],
)
def test_a_rotation_has_the_length_it_was_trained_for_times_its_scale(
    kind: str, fields: dict[str, Any], limit: int | None
):
    config = getattr(transformers, f"{kind}Config")(**fields)
    assert model_lengths(config, auto_class=CAUSAL) == Lengths(limit, None, by_table=False)


def test_relative_positions_have_no_limit():
    deberta = {"relative_attention": True, "position_biased_input": False, "max_position_embeddings": 24, **BERT}
    assert model_lengths(transformers.DebertaV2Config(**deberta), auto_class=CLASSES).source is None
    t5 = transformers.T5Config(n_positions=24, d_model=32, num_layers=1)  # which T5's own files write
    assert model_lengths(t5, auto_class=SEQ2SEQ) == Lengths(None, None, by_table=False)


def test_a_decoder_may_have_fewer_positions_than_its_encoder():
    led = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 24, "attention_window": 8, **BART}
    assert model_lengths(transformers.LEDConfig(**led), auto_class=SEQ2SEQ, decodes=True) == Lengths(
        64, 24, by_table=True
    )
