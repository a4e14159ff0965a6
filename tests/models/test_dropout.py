"""Models whose dropouts draw by row: loss and gradient do not depend on how rows are cut up and laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from ftscale.models.adapt import enable_checkpointing
from ftscale.models.attention import BY_ROW, FLAT
from ftscale.models.dropout import RowDropout, use_row_dropout
from ftscale.models.layout import choose_layout
from ftscale.models.masks import Masks
from ftscale.models.probing import flat_rows, padded_rows, transformers_model

LENGTHS = (4, 4, 9, 6, 9, 5)
CUTS = {"one": [[0, 1, 2, 3, 4, 5]], "unlike": [[5, 2], [0, 1, 4], [3]], "single": [[row] for row in range(6)]}
SMALL = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
SEQ2SEQ = {"vocab_size": 211, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 0}
T5 = {**SEQ2SEQ, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.1}
BART = {
    **SEQ2SEQ,
    **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 48))},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "eos_token_id": 2},
}
LLAMA = {**SMALL, "num_key_value_heads": 2, "attention_dropout": 0.1, "pad_token_id": 0}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**SMALL, **DROPS}),
    "bert tags": ("BertForTokenClassification", "BertConfig", {**SMALL, **DROPS}),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**SMALL, **DROPS, "pad_token_id": 1}),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**SMALL, **DROPS, "embedding_size": 16}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
}
POOLED = ("bert", "roberta", "albert")
PADDED = ("t5", "bart")
SAME = 2e-6


def build(name: str, **about: Any) -> Any:
    model_class, config_class, fields = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**fields, **about)).train()


def rows_of() -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(3, 211, (length,), generator=random) for length in LENGTHS]


def loss_and_gradient(
    model: nn.Module, masks: Masks | None, cut: list[list[int]], *, layout: str
) -> tuple[float, Tensor]:
    """Of sums of squared logits, over all rows in their cut."""
    inner, rows, total = transformers_model(model), rows_of(), 0.0
    model.zero_grad()
    for group in cut:
        some = [rows[row] for row in group]
        inputs = flat_rows(some, inner) if layout == "flat" else padded_rows(some, inner)
        if inner.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.stack([row[:4] for row in some])
        if masks is not None:
            masks.enter(torch.tensor(group), repeats=None, bounds=inputs.get("cu_seq_lens_q"))
        logits = model(**inputs).logits
        if logits.ndim == 3 and "attention_mask" in inputs and not inner.config.is_encoder_decoder:
            logits = logits[inputs["attention_mask"].bool()]
        loss = logits.square().sum()
        loss.backward()
        total += loss.item()
    gradients = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return total, torch.cat(gradients)


def differences(model: nn.Module, masks: Masks | None, layouts: dict[str, nn.Module]) -> dict[tuple[str, str], float]:
    """Relative, of loss and gradient of every cut and layout, from all rows at once and padded."""
    loss, gradient = loss_and_gradient(model, masks, CUTS["one"], layout="padded")
    found = {}
    for layout, laid in layouts.items():
        for name, cut in CUTS.items():
            other_loss, other = loss_and_gradient(laid, masks, cut, layout=layout)
            found[layout, name] = max(abs(other_loss - loss) / loss, float((other - gradient).norm() / gradient.norm()))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_do_not_depend_on_cut_and_layout(name: str):
    masks, layouts = Masks(7), {}
    for layout in ("padded",) if name in PADDED else ("padded", "flat"):
        laid = build(name)
        choose_layout(
            laid,
            wanted=layout,
            attention="auto",
            pooled=name in POOLED,
            encoder_decoder=name in PADDED,  # type: ignore[arg-type]
        )
        use_row_dropout(laid, masks)
        layouts[layout] = laid
    found = differences(layouts["padded"], masks, layouts)
    assert max(found.values()) < SAME, found
    masks.step = 1
    assert loss_and_gradient(layouts["padded"], masks, CUTS["one"], layout="padded")[0] != pytest.approx(
        loss_and_gradient(layouts["padded"], Masks(7), CUTS["one"], layout="padded")[0] if False else 0
    )
