"""Which models take flat rows, and pooling heads over them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor, nn

from ftscale.base.errors import UserError
from ftscale.models.attention import FLAT
from ftscale.models.layout import choose_layout, first_tokens_suffice, supports_flat, why_not_flat

LENGTHS = (4, 4, 9, 6)

SMALL = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 3,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 211, "n_embd": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0}
DISTIL = {"vocab_size": 211, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "pad_token_id": 0}
MODERN = {**SMALL, "local_attention": 8, "cls_token_id": 3, "sep_token_id": 4}
ROBERTA = {**SMALL, "pad_token_id": 1, "bos_token_id": 0}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
T5 = {"vocab_size": 211, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}

POOLED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", SMALL),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", ROBERTA),
    "modernbert, first token": ("ModernBertForSequenceClassification", "ModernBertConfig", MODERN),
    "modernbert, mean": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {**MODERN, "classifier_pooling": "mean"},
    ),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", {**DISTIL, "num_labels": 3}),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**SMALL, "embedding_size": 16}),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**SMALL, "embedding_size": 16}),
}
BY_TOKEN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GEMMA),
    "bert tags": ("BertForTokenClassification", "BertConfig", SMALL),
    "roberta tags": ("RobertaForTokenClassification", "RobertaConfig", ROBERTA),
    "modernbert masked words": ("ModernBertForMaskedLM", "ModernBertConfig", MODERN),
}
REFUSED: dict[str, tuple[str, str, dict[str, Any], bool, str]] = {
    "relative positions": ("T5ForConditionalGeneration", "T5Config", T5, False, "encoder-decoder"),
    "own attention": ("DebertaV2ForSequenceClassification", "DebertaV2Config", SMALL, True, "AttentionInterface"),
    "pooling by pad tokens": ("GPT2ForSequenceClassification", "GPT2Config", GPT2, True, "does not take flat rows"),
    "attention sinks": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**GROUPED, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        False,
        "s_aux",
    ),
    "recurrence": (
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 211, "hidden_size": 32, "num_hidden_layers": 1},
        False,
        "other outputs",
    ),
    "images": (
        "ViTForImageClassification",
        "ViTConfig",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
        False,
        "not tokens",
    ),
}


def build(model_class: str, config_class: str, fields: dict[str, Any]) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).eval()
    for parameter in model.parameters():  # so that tokens and their order matter to the outputs
        if parameter.dim() == 2:
            parameter.data.mul_(4.0)
    return model


def samples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 211, (length,), generator=generator) for length in LENGTHS]


def padded(model: nn.Module, rows: list[Tensor]) -> dict[str, Tensor]:
    pad = nn.utils.rnn.pad_sequence
    ids = pad(rows, batch_first=True, padding_value=model.config.pad_token_id or 0)
    return {"input_ids": ids, "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True)}


def flat(rows: list[Tensor]) -> dict[str, Any]:
    lengths = [len(row) for row in rows]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        "input_ids": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def outputs_and_gradients(model: nn.Module, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.sin(logits * 3).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def choose(model: nn.Module, *, pooled: bool, wanted: str = "auto", attention: str = "auto") -> str:
    return choose_layout(model, wanted=wanted, attention=attention, pooled=pooled, encoder_decoder=False)


def assert_same(got: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert got[1].keys() == wanted[1].keys()
    size = max(gradient.norm().item() for gradient in wanted[1].values())
    for name, gradient in wanted[1].items():
        assert (got[1][name] - gradient).norm() <= 1e-4 * max(gradient.norm().item(), 1e-3 * size), name


@pytest.mark.parametrize("name", POOLED)
def test_pooled_heads_give_the_same_for_flat_rows(name: str) -> None:
    model = build(*POOLED[name])
    rows = samples()
    wanted = outputs_and_gradients(model, model(**padded(model, rows)).logits)
    assert choose(model, pooled=True) == "flat"
    tokens = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape),
        with_kwargs=True,
    )
    assert_same(outputs_and_gradients(model, model(**flat(rows)).logits), wanted)
    assert tokens == [(1, sum(LENGTHS))]


@pytest.mark.parametrize("name", BY_TOKEN)
def test_heads_by_token_give_the_same_for_flat_rows(name: str) -> None:
    model = build(*BY_TOKEN[name])
    rows = samples()
    batch = padded(model, rows)
    wanted = outputs_and_gradients(model, model(**batch).logits[batch["attention_mask"].bool()])
    assert choose(model, pooled=False) == "flat"
    assert_same(outputs_and_gradients(model, model(**flat(rows)).logits[0]), wanted)


def test_a_head_of_first_tokens_lets_the_last_block_make_no_others() -> None:
    model = build(*POOLED["bert"])
    last = model.base_model.encoder.layer[-1]
    sizes = []
    for block in model.base_model.encoder.layer:
        block.intermediate.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    rows = samples()
    wanted = outputs_and_gradients(model, model(**padded(model, rows)).logits)
    assert choose(model, pooled=True) == "flat"
    sizes.clear()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = last.attention.self.dropout.p = 0.0
    assert_same(outputs_and_gradients(model, model(**flat(rows)).logits), wanted)
    assert sizes == [sum(LENGTHS), len(LENGTHS), len(LENGTHS), sum(LENGTHS)]  # forward, then recomputed backward


@pytest.mark.parametrize(
    ("name", "first"), [("bert", True), ("roberta", True), ("electra", True), ("modernbert, mean", False)]
)
def test_which_heads_read_first_tokens_alone_is_found_out(name: str, first: bool) -> None:
    assert first_tokens_suffice(build(*POOLED[name])) is first


def test_a_mean_over_tokens_is_not_taken_for_the_first_token() -> None:
    class Mean(nn.Module):
        def __init__(self, classifier: nn.Module) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, states: Tensor) -> Tensor:
            return self.classifier(states.mean(1, keepdim=True))

    model = build(*POOLED["roberta"])
    model.classifier = Mean(model.classifier)
    assert not first_tokens_suffice(model)
    for weight in model.classifier.parameters():
        nn.init.zeros_(weight)
    assert not first_tokens_suffice(model)


def test_an_adapted_classifier_gives_the_same_for_flat_rows() -> None:
    settings = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    model = get_peft_model(build(*POOLED["roberta"]), settings).eval()
    rows = samples()
    wanted = outputs_and_gradients(model, model(**padded(model, rows)).logits)
    assert choose(model, pooled=True) == "flat"
    assert_same(outputs_and_gradients(model, model(**flat(rows)).logits), wanted)


def test_padded_batches_pass_the_hooks_unchanged() -> None:
    from ftscale.models.attention import use_padded

    model = build(*POOLED["modernbert, mean"])
    batch = padded(model, samples())
    wanted = model(**batch).logits
    assert choose(model, pooled=True) == "flat"
    model(**flat(samples()))
    use_padded(model)
    assert torch.equal(model(**batch).logits, wanted)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_would_be_wrong_is_refused_and_left_as_it_was(name: str) -> None:
    model_class, config_class, fields, pooled, reason = REFUSED[name]
    model = build(model_class, config_class, fields)
    before = model.config._attn_implementation
    assert not supports_flat(model, pooled=pooled)
    assert reason in why_not_flat(model, pooled=pooled)
    assert choose(model, pooled=pooled) == "padded"
    assert model.config._attn_implementation == before
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert sum(hooks) == 0


def test_positions_that_the_model_ignores_are_found_out() -> None:
    class Counts(transformers.BertForTokenClassification):
        def forward(self, position_ids: Tensor | None = None, **inputs: Any) -> Any:
            return super().forward(**inputs)

    torch.manual_seed(0)
    model = Counts(transformers.BertConfig(**SMALL))
    assert "other outputs" in why_not_flat(model, pooled=False)


def test_a_prefix_that_every_sample_sees_is_refused() -> None:
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(build(*BY_TOKEN["llama"]), settings)
    assert not supports_flat(model, pooled=False)


def test_a_probe_leaves_modes_weights_and_random_numbers_alone() -> None:
    model = build(*POOLED["bert"])
    model.classifier.train()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert supports_flat(model, pooled=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config._attn_implementation == "sdpa"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_is_probed_with_the_tolerance_of_its_rounding() -> None:
    assert supports_flat(build(*POOLED["bert"]).bfloat16(), pooled=True)
    model_class, config_class, fields, pooled, _ = REFUSED["recurrence"]
    assert not supports_flat(build(model_class, config_class, fields).bfloat16(), pooled=pooled)


@pytest.mark.parametrize(
    ("wanted", "attention", "layout", "implementation"),
    [("auto", "auto", "flat", FLAT), ("padded", "auto", "padded", "sdpa"), ("auto", "sdpa", "padded", "sdpa")],
)
def test_the_layout_follows_the_settings(wanted: str, attention: str, layout: str, implementation: str) -> None:
    model = build(*BY_TOKEN["llama"])
    assert choose(model, pooled=False, wanted=wanted, attention=attention) == layout
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize(
    ("attention", "encoder_decoder", "reason"),
    [("sdpa", False, "model.attention = sdpa"), ("auto", True, "an encoder-decoder needs padded rows")],
)
def test_flat_rows_that_cannot_be_are_the_users_mistake(attention: str, encoder_decoder: bool, reason: str) -> None:
    model = build(*BY_TOKEN["llama"])
    with pytest.raises(UserError, match=rf"batch.layout = flat cannot be used: {reason}.*; set batch.layout"):
        choose_layout(model, wanted="flat", attention=attention, pooled=False, encoder_decoder=encoder_decoder)
