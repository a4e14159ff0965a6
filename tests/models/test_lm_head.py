"""The chunked head against the plain way: the model's own logits and torch's cross entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from ftscale.models import lm_head

SMALL = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "attn_implementation": "eager"}
T5 = {"vocab_size": 211, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {"vocab_size": 211, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48}
BART |= {"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0}

SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "llama tied": ("LlamaForCausalLM", "LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 211, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    # the cap is low, so that it bends these small logits too
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GEMMA, "final_logit_softcapping": 0.3}),
    "cohere": ("CohereForCausalLM", "CohereConfig", {**GROUPED, "logit_scale": 0.0625}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {**GROUPED, "logits_scaling": 8.0}),
    "bert": ("BertForMaskedLM", "BertConfig", SMALL),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", {**SMALL, "cls_token_id": 3, "sep_token_id": 4}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5 untied": ("T5ForConditionalGeneration", "T5Config", {**T5, "tie_word_embeddings": False}),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
}


def build(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model_class, config_class, fields = SHAPES[name]
    config = getattr(transformers, config_class)(**fields)
    # no dropout, and gradients compared in training mode
    return getattr(transformers, model_class)(config).eval()


def batch(model: nn.Module, *, rows: int = 3, time: int = 11) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 211, (rows, time), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    labels = torch.randint(5, 211, (rows, time), generator=generator)
    labels[torch.rand(rows, time, generator=generator) < 0.4] = -100
    labels[mask == 0] = -100
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(5, 211, (rows, time), generator=generator)
    return inputs, labels


def plain_loss(model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    logits = model(**inputs).logits[:, -labels.shape[1] :].float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (loss * 0.37).backward()  # the loop divides by a count: the incoming gradient is not 1
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(got: dict[str, Tensor], wanted: dict[str, Tensor], *, tolerance: float = 1e-5) -> None:
    assert got.keys() == wanted.keys()
    size = max(gradient.norm().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        error = (got[name] - gradient).norm().item()
        assert error <= tolerance * max(gradient.norm().item(), 1e-3 * size), name


def assert_as_plain(model: nn.Module, *, tolerance: float = 1e-5) -> None:
    inputs, labels = batch(model)
    wanted = plain_loss(model, inputs, labels)
    got = lm_head.lm_loss(model, inputs, labels)
    assert got.dtype == torch.float32
    assert got.shape == ()
    assert got.item() == pytest.approx(wanted.item(), rel=tolerance)
    assert_same_gradients(gradients(model, got), gradients(model, wanted), tolerance=tolerance)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows a chunk, so that the vocabulary is far larger than the chunk and the last chunk is a short one."""
    monkeypatch.setitem(lm_head.CHUNK_BYTES, "cpu", 4 * 4 * 211)
    monkeypatch.setattr(lm_head, "LEAST_ROWS", 1)


@pytest.mark.parametrize("name", SHAPES)
def test_loss_and_gradients_equal_the_plain_way(name: str, small_chunks: None) -> None:
    model = build(name)
    assert lm_head.head_is_known(model, batch(model)[0])
    assert_as_plain(model)


def test_full_logits_never_exist(monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> None:
    model = build("llama")
    inputs, labels = batch(model)
    lm_head.lm_loss(model, inputs, labels)  # the probe of the head is over
    shapes = []
    model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    lm_head.lm_loss(model, inputs, labels).backward()
    assert shapes == [(3, 0, 211)]


@pytest.mark.parametrize("rows", [1, 1000])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setitem(lm_head.CHUNK_BYTES, "cpu", rows * 4 * 211)
    monkeypatch.setattr(lm_head, "LEAST_ROWS", 1)
    assert_as_plain(build("gemma2"))


def test_losses_and_hits_of_each_target_come_in_row_major_order(small_chunks: None) -> None:
    model = build("gemma2")
    inputs, labels = batch(model)
    losses, correct = lm_head.lm_target_losses(model, inputs, labels)
    with torch.no_grad():
        logits = model(**inputs).logits[labels != -100].float()
    targets = labels[labels != -100]
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"), rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, logits.argmax(-1) == targets)
    assert not losses.requires_grad
    best = labels.clone()
    best[labels != -100] = logits.argmax(-1)
    assert lm_head.lm_target_losses(model, inputs, best)[1].all()


def test_a_frozen_head_gets_no_gradient_and_adapters_the_plain_one(small_chunks: None) -> None:
    model = get_peft_model(
        build("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    assert_as_plain(model)
    assert model.get_base_model().lm_head.weight.grad is None


def test_lora_on_the_head_equals_the_plain_way(small_chunks: None) -> None:
    model = get_peft_model(
        build("llama"), LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    )
    assert lm_head.head_is_known(model, batch(model)[0])
    assert_as_plain(model)
    assert any("lm_head" in name and p.grad is not None for name, p in model.named_parameters())


def test_a_head_that_an_adapter_saves_whole_equals_the_plain_way(small_chunks: None) -> None:
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    assert_as_plain(get_peft_model(build("llama"), settings))


def test_virtual_tokens_in_front_have_no_label(small_chunks: None) -> None:
    model = get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    assert_as_plain(model)


def test_a_bias_added_to_the_logits_after_the_head_is_seen(small_chunks: None) -> None:
    model = build("bart")
    model.final_logits_bias.copy_(torch.randn(1, 211, generator=torch.Generator().manual_seed(2)))
    assert lm_head.head_is_known(model, batch(model)[0])
    assert_as_plain(model)


class Odd(transformers.LlamaForCausalLM):
    """Does something with its logits that no config field tells."""

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = output.logits.sign() * output.logits.abs().sqrt()
        return output


class WholeRows(transformers.LlamaForCausalLM):
    """Cannot do with fewer positions at its head than its inputs have."""

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        output = super().forward(input_ids, **inputs)
        output.logits = output.logits + 0.01 * input_ids[..., None]
        return output


@pytest.mark.parametrize("model_class", [Odd, WholeRows])
def test_an_unknown_change_of_logits_is_left_to_the_model(model_class: type) -> None:
    torch.manual_seed(0)
    model = model_class(transformers.LlamaConfig(**GROUPED)).eval()
    inputs, labels = batch(model)
    assert not lm_head.head_is_known(model, inputs)
    assert_as_plain(model)
    losses, correct = lm_head.lm_target_losses(model, inputs, labels)
    assert losses.sum().item() == pytest.approx(plain_loss(model, inputs, labels).item(), rel=1e-5)
    assert correct.shape == losses.shape


def test_an_unknown_head_still_runs_on_supervised_rows_only() -> None:
    torch.manual_seed(0)
    model = Odd(transformers.LlamaConfig(**GROUPED)).eval()
    inputs, labels = batch(model)
    lm_head.head_is_known(model, inputs)
    shapes = []
    model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    lm_head.lm_loss(model, inputs, labels)
    assert shapes == [(1, int((labels != -100).sum()), 211)]


def test_a_wrong_reading_of_the_config_is_not_believed() -> None:
    """The same field multiplies in one family and divides in another; the probe tells them apart."""

    class Multiplies(transformers.GraniteForCausalLM):
        def forward(self, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            output.logits = output.logits * self.config.logits_scaling**2
            return output

    torch.manual_seed(0)
    model = Multiplies(transformers.GraniteConfig(**GROUPED, logits_scaling=0.5)).eval()
    assert lm_head.head_is_known(model, batch(model)[0])
    assert_as_plain(model)


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_no_label_at_all_gives_zero_with_a_graph_to_every_weight(target: str) -> None:
    model = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    inputs, labels = batch(model)
    loss = lm_head.lm_loss(model, inputs, torch.full_like(labels, -100))
    assert loss.item() == 0.0
    got = gradients(model, loss)
    assert got.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(not gradient.any() for gradient in got.values())


def test_no_label_at_all_still_reaches_a_trained_head() -> None:
    model = build("llama")
    inputs, labels = batch(model)
    got = gradients(model, lm_head.lm_loss(model, inputs, torch.full_like(labels, -100)))
    assert "lm_head.weight" in got
    assert not got["lm_head.weight"].any()


def test_the_probe_of_the_head_leaves_modes_and_random_numbers_alone() -> None:
    model = build("bert")
    model.bert.encoder.layer[1].train()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    assert lm_head.head_is_known(model, batch(model)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_bfloat16_is_as_near_to_float32_as_the_plain_way(name: str, small_chunks: None) -> None:
    exact = build(name)
    inputs, labels = batch(exact)
    wanted = gradients(exact, plain_loss(exact, inputs, labels))
    model = build(name).bfloat16()
    errors = {}
    for way in (plain_loss, lm_head.lm_loss):
        got = gradients(model, way(model, inputs, labels))
        errors[way] = sum((got[key].float() - wanted[key]).norm() for key in wanted).item()
    assert errors[lm_head.lm_loss] < 1.25 * errors[plain_loss]
    exact_loss = plain_loss(exact, inputs, labels).item()
    assert lm_head.lm_loss(model, inputs, labels).item() == pytest.approx(exact_loss, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_around_the_model_holds_for_the_head_too(dtype: torch.dtype, small_chunks: None) -> None:
    model = build("llama")
    inputs, labels = batch(model)
    wanted = gradients(model, plain_loss(model, inputs, labels))
    forward = model.forward

    def under_autocast(**arguments: Any) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return forward(**arguments)

    model.forward = under_autocast  # as Accelerate does it
    got = gradients(model, lm_head.lm_loss(model, inputs, labels))
    assert got["lm_head.weight"].dtype == torch.float32
    assert_same_gradients(got, wanted, tolerance=0.02)
    error = (got["lm_head.weight"] - wanted["lm_head.weight"]).norm() / wanted["lm_head.weight"].norm()
    assert error > 1e-4  # it did run in 16 bits


def test_a_second_backward_is_refused() -> None:
    model = build("llama")
    loss = lm_head.lm_loss(model, *batch(model))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_without_gradients_the_sum_is_the_same() -> None:
    model = build("gemma2")
    inputs, labels = batch(model)
    with torch.no_grad():
        assert lm_head.lm_loss(model, inputs, labels).item() == pytest.approx(
            plain_loss(model, inputs, labels).item(), rel=1e-5
        )
