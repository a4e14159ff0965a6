"""Models whose dropouts draw by row: loss and gradient do not depend on how rows are cut up and laid out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from ftscale.models.adapt import enable_checkpointing
from ftscale.models.attention import BY_ROW, FLAT, row_attention
from ftscale.models.dropout import RowDropout, use_row_dropout
from ftscale.models.layout import choose_layout
from ftscale.models.masks import Masks, draw_of, set_site
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


def build(name: str) -> Any:
    model_class, config_class, fields = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).train()


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


def differences(
    masks: Masks | None, layouts: dict[str, nn.Module], *, reference: str = "padded"
) -> dict[tuple[str, str], float]:
    """Relative, of loss and gradient of every cut and layout, from all rows at once."""
    loss, gradient = loss_and_gradient(layouts[reference], masks, CUTS["one"], layout=reference)
    found = {}
    for layout, laid in layouts.items():
        for name, cut in CUTS.items():
            other_loss, other = loss_and_gradient(laid, masks, cut, layout=layout)
            found[layout, name] = max(abs(other_loss - loss) / loss, float((other - gradient).norm() / gradient.norm()))
    return found


def laid_out(model: Any, name: str, layout: str) -> Any:
    encoder_decoder = name in PADDED
    choose_layout(model, wanted=layout, attention="auto", pooled=name in POOLED, encoder_decoder=encoder_decoder)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_do_not_depend_on_cut_and_layout(name: str):
    masks = Masks(7)
    layouts = {layout: laid_out(build(name), name, layout) for layout in ("padded", *(["flat"] * (name not in PADDED)))}
    for model in layouts.values():
        use_row_dropout(model, masks)
    found = differences(masks, layouts)
    assert max(found.values()) < SAME, found
    if name in POOLED:  # a flat one runs on first tokens alone in its last block
        assert layouts["flat"].config._attn_implementation == FLAT
        assert layouts["padded"].config._attn_implementation == BY_ROW


def test_losses_of_torchs_own_dropout_depend_on_the_cut():
    found = differences(None, {"padded": build("bert")})
    assert min(value for (_, cut), value in found.items() if cut != "one") > 0.1, found


def test_another_step_and_another_seed_draw_other_masks():
    model, losses = build("bert"), []
    for seed, step in ((7, 0), (7, 1), (8, 0)):
        masks = Masks(seed)
        masks.step = step
        undo = use_row_dropout(model, masks)
        losses.append(loss_and_gradient(model, masks, CUTS["one"], layout="padded")[0])
        undo()
    assert len(set(losses)) == 3


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_the_dropout_of_an_adapter_is_by_row_too(layout: str):
    config = LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear", init_lora_weights=False)
    model = laid_out(get_peft_model(build("llama"), config), "llama", layout)
    masks = Masks(7)
    use_row_dropout(model, masks)
    assert sum(isinstance(part, RowDropout) for part in model.modules()) == 2 * 7
    found = differences(masks, {layout: model}, reference=layout)
    assert max(found.values()) < SAME, found


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_a_recomputation_draws_the_masks_of_its_forward(name: str):
    masks, plain, checkpointed = Masks(7), build(name), build(name)
    for model in (plain, checkpointed):
        use_row_dropout(model, masks)
    enable_checkpointing(checkpointed, masks=masks)
    loss, gradient = loss_and_gradient(plain, masks, CUTS["unlike"], layout="padded")
    again_loss, again = loss_and_gradient(checkpointed, masks, CUTS["unlike"], layout="padded")
    assert again_loss == loss
    assert torch.equal(again, gradient)


def test_attention_with_dropout_is_the_plain_product_with_the_mask_by_hand():
    """Grouped heads, a causal mask and a bias of positions, in float64."""
    torch.manual_seed(0)
    module, masks = nn.Module(), Masks(0)
    module.is_causal = True
    set_site(module, masks, site=5)
    query, bias = torch.randn(2, 4, 6, 8).double(), torch.randn(1, 4, 6, 6).double()
    key, value = torch.randn(2, 2, 2, 6, 8).double()
    rows = torch.tensor([3, 9])
    masks.enter(rows, repeats=None, bounds=None)
    kept = masks.draw(5).drop(torch.ones(2, 4, 6, 6).double(), 0.25)
    masks.enter(rows, repeats=None, bounds=None)
    found, _ = row_attention(module, query, key, value, None, dropout=0.25, position_bias=bias)
    whole_key, whole_value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, whole_key) / 8**0.5 + bias
    weights = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("bhqk,bhkd->bqhd", weights * kept, whole_value)
    torch.testing.assert_close(found, expected)
    assert set(kept.unique().tolist()) == {0.0, 4 / 3}


def test_a_model_is_as_it_was_when_it_is_undone():
    model = laid_out(build("bart"), "bart", "padded")
    before = dict(model.named_modules())
    use_row_dropout(model, Masks(7))()
    assert dict(model.named_modules()) == before
    assert model.config._attn_implementation == "sdpa"
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert all(draw_of(part) is None for part in model.modules())


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_without_training_nothing_is_drawn_and_outputs_are_those_of_torch(name: str):
    plain, by_row = build(name).eval(), build(name).eval()
    use_row_dropout(by_row, Masks(7))
    inputs = padded_rows(rows_of(), plain)
    assert torch.equal(by_row(**inputs).logits, plain(**inputs).logits)
